"""Load Hugging Face folders (or hub ids) the way training needs them: dropout off, a pad token, no random heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.functional.linear_logprobs import CHUNK
from rlhf_lightning.models.adapters import Lora, lora
from rlhf_lightning.models.checks import check_config, check_templates, check_tokens, check_unused
from rlhf_lightning.models.configs import cut_to_layers, switch_off_randomness
from rlhf_lightning.models.folders import check_files, check_folder, check_kind, check_labels, check_tokenizer
from rlhf_lightning.models.kinds import causal_class, heads_of, scalar_class
from rlhf_lightning.models.packing import can_pack
from rlhf_lightning.models.probes import check_rows
from rlhf_lightning.models.quantized import check_library, quantize
from rlhf_lightning.models.reading import leave_other_parts, nothing_there, read_weights, tell
from rlhf_lightning.models.tokenizer_file import as_file_says
from rlhf_lightning.models.trunk import checkpoint_activations, freeze_layers
from rlhf_lightning.models.unread import loaded_or_unread, unread_of
from rlhf_lightning.rules.placement import FOUR_BIT_LEARNS
from rlhf_lightning.rules.ranges import require

DType = Literal["float32", "bfloat16", "float16"]
# Other names transformers looks up on the hub, to download a kernel and run it.
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Pretrained:
    """A recipe for loading one model; nothing is read before a method is called.

    Args:
        path: a folder in Hugging Face format or a hub id. A folder of this library is verified by checksum first.
        dtype: dtype of the weights: float32, bfloat16 or float16.
        attn_implementation: attention kernel of transformers, for example sdpa or eager; ``auto`` takes sdpa, or eager
            where the architecture has no sdpa.
        freeze_below: number of lowest decoder layers (and the embeddings) that are not trained, 0 for none.
        revision: commit or tag of a hub id.
        trust_remote_code: let transformers run code that lies next to the weights; needs a pinned `revision`.
        head_chunk: tokens whose logits exist at a time where a policy scores tokens; None (or 0) computes those of a
            batch at once. Changes memory and speed, and results by rounding at most.
        pack_rows: put several sequences into one row, and a prompt only once for all its answers, where that pays and
            the architecture allows it, see `rlhf_lightning.models.packing`. Changes results by rounding at most.
        lora: adapters that learn in place of the weights where the model is trained, a `Lora` or a mapping of its
            arguments; None trains the weights.
        activation_checkpointing: True keeps the inputs of the decoder layers only, and computes the rest again in the
            backward pass: less memory for about a third more time, the same numbers. A number n does so for every n-th
            layer.
        load_in_4bit: keep 4 bits of each weight in the linear layers of the decoder, see
            `rlhf_lightning.models.quantized`; a model that is trained then needs ``lora``. It is read whole first.
        offload: keep frozen models (the reference of PPO, a reward model) in the memory of the host, and bring them to
            the device for the part of an iteration that asks them.
    """

    path: str
    dtype: DType = "float32"
    attn_implementation: Attention = "auto"
    freeze_below: int = 0
    revision: str | None = None
    trust_remote_code: bool = False
    head_chunk: int | None = CHUNK
    pack_rows: bool = True
    lora: Lora | None = None
    activation_checkpointing: bool | int = False
    offload: bool = False
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        require("model.freeze_below", self.freeze_below, at_least=0)
        require("model.head_chunk", self.head_chunk, at_least=0, why="tokens; null computes all at once")
        require("model.activation_checkpointing", self.activation_checkpointing, at_least=0)
        object.__setattr__(self, "lora", lora(self.lora))  # a config gives a mapping
        if self.load_in_4bit:
            check_library()
        if self.dtype not in _DTYPES:
            raise ConfigError(f"model.dtype={self.dtype!r}: choose one of {', '.join(_DTYPES)}")
        if self.attn_implementation not in get_args(Attention):
            known = ", ".join(get_args(Attention))
            raise ConfigError(f"model.attn_implementation={self.attn_implementation!r}: choose one of {known}")
        if self.trust_remote_code and self.revision is None:
            raise ConfigError("model.trust_remote_code=true needs a pinned model.revision (the commit you have read)")

    def at(self, path: str | Path) -> Pretrained:
        """The same recipe for another folder."""
        return replace(self, path=str(path))

    def causal_lm(self) -> PreTrainedModel:
        """A policy: `AutoModelForCausalLM` in train mode without dropout.

        Of a checkpoint that also takes images or sound only the text model learns.

        Raises:
            CheckpointError: nothing there, damaged, a reward model, weights are missing in the file, or the model fails
                what `rlhf_lightning.models.probes` tries.
        """
        return self._loaded(self._causal_lm, causal_class, self._config())

    def _causal_lm(self, config: PretrainedConfig, kept_layers: int | None) -> PreTrainedModel:
        model, missing, unused = self._load(causal_class, config)
        if "score.weight" in unused:  # with tied embeddings nothing else tells
            raise CheckpointError(
                f"{self.path}: has a score.weight; this is a reward model, not a language model. Give the folder of "
                "the policy it judges"
            )
        check_unused(unused, self.path, kept_layers=kept_layers)
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        if missing - tied:
            raise CheckpointError(
                f"{self.path}: weights missing for {sorted(missing - tied)[:3]}; not a complete language model"
            )
        model.head_chunk = self.head_chunk  # type: ignore[assignment]
        leave_other_parts(model, config, self.path)
        return self._prepared(model)

    def reward_model(
        self, *, init_head: bool = False, head_std: float | None = None, num_layers: int | None = None
    ) -> PreTrainedModel:
        """A scalar model: `AutoModelForSequenceClassification` with one label, or what takes its place, see `kinds`.

        Args:
            init_head: take the backbone of a language model and draw a new head from N(0, 1 / (d + 1)), the variance
                used by Stiennon et al. 2020 (arXiv:2009.01325). Without it a folder whose head is missing is refused,
                since transformers would silently score with a random one.
            head_std: standard deviation of a new head instead of 1 / sqrt(d + 1); 0 starts from equal scores, which is
                better where comparisons are few.
            num_layers: keep only so many of the lowest decoder layers; None keeps all. The upper layers of a language
                model turn to the next token, so that a shallower reward model can learn more from few comparisons, at
                a part of the cost.

        Raises:
            CheckpointError: the head is missing and `init_head` is False, or nothing is there.
            ConfigError: ``num_layers`` is not among those there are.
        """
        check_labels(self.path)
        config = self._config(num_labels=1)
        if num_layers is not None:
            _keep_lowest(config.get_text_config(), num_layers)

        def load(config: PretrainedConfig, kept_layers: int | None) -> PreTrainedModel:
            return self._reward_model(config, kept_layers or num_layers, init_head, head_std)

        return self._loaded(load, scalar_class, config)

    def _reward_model(
        self, config: PretrainedConfig, kept_layers: int | None, init_head: bool, head_std: float | None
    ) -> PreTrainedModel:
        model, missing, unused = self._load(scalar_class, config)
        check_unused(unused, self.path, heads=heads_of(config) if unused else (), kept_layers=kept_layers)
        head = _head(model, self.path)
        absent = sorted(name for name in missing if not name.startswith("score."))
        if absent:
            raise CheckpointError(f"{self.path}: weights missing for {absent[:3]}; not a complete model")
        if init_head:
            nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5 if head_std is None else head_std)
        elif any(name.startswith("score.") for name in missing):
            raise CheckpointError(
                f"{self.path}: no score.weight; this is a language model, not a reward model. "
                "Train one first (stage=reward)"
            )
        return self._prepared(model)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder; see `load_tokenizer`."""
        return load_tokenizer(self.path, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def adapted(self, model: PreTrainedModel) -> PreTrainedModel:
        """A model that was loaded to be trained, with its adapters put in, if there are to be any; see `Lora.put_into`.

        Models that only sample or judge are left as they are.

        Raises:
            ConfigError: it has 4-bit weights, which do not learn, and is to have no adapters.
        """
        if self.load_in_4bit and self.lora is None:
            raise ConfigError(FOUR_BIT_LEARNS)
        if self.lora is not None:
            self.lora.put_into(model, self.freeze_below)
        return model

    def _config(self, **overrides: Any) -> PretrainedConfig:
        check_folder(self.path)
        try:
            config = AutoConfig.from_pretrained(self.path, **self._source(), **overrides)
        except Exception as error:  # the folder is someone else's: it can be wrong in any way
            raise nothing_there(self.path, "model", error) from error
        check_config(config, self.path)
        check_kind(config, self.path)
        switch_off_randomness(config)
        return config

    def _loaded(self, load: Any, kind: Any, config: PretrainedConfig) -> PreTrainedModel:
        """See `loaded_or_unread`; frozen lower layers are tried on the whole model, and 4 bits are made of it."""
        if self.load_in_4bit:
            with torch.device("cpu"):  # a device may have room for the 4 bits only
                return load(config, None)
        if self.freeze_below:
            return load(config, None)
        model = loaded_or_unread(load, kind, config, self.path)
        if unread_of(model) is not None and self.activation_checkpointing:
            checkpoint_activations(model, int(self.activation_checkpointing))
        return model

    def _load(
        self, kind: Callable[[PretrainedConfig], Any], config: PretrainedConfig
    ) -> tuple[PreTrainedModel, set[str], set[str]]:
        """The model, its weights that the folder does not hold, and those of the folder that it does not have."""
        return read_weights(
            kind,
            self.path,
            config,
            dtype=_DTYPES[self.dtype],
            attention=self.attn_implementation,
            source=self._source(),
        )

    def _source(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def _prepared(self, model: PreTrainedModel) -> PreTrainedModel:
        tokenizer = self.tokenizer()
        check_tokens(model, tokenizer, self.path)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        check_rows(model, self.path)
        if self.freeze_below:
            freeze_layers(model, self.freeze_below)
        model.pack_rows = self.pack_rows and can_pack(model)  # type: ignore[assignment]
        if self.pack_rows and not model.pack_rows:
            tell(f"sequences of {model.config.model_type} models cannot share a row: each gets a row of its own")
        if self.activation_checkpointing:
            checkpoint_activations(model, int(self.activation_checkpointing))
        if self.load_in_4bit:
            quantize(model)
        return model.train()


def load_tokenizer(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, always with a pad token.

    Where a tokenizer has none, EOS is used for padding: safe here, because masks never look at the pad id. A folder's
    ``tokenizer.json`` is followed to the letter.

    Raises:
        CheckpointError: no tokenizer there, or it has no EOS, without which an answer cannot end.
    """
    check_files(Path(path))
    check_templates(Path(path))
    check_tokenizer(Path(path))
    try:
        found = AutoTokenizer.from_pretrained(str(path), revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise nothing_there(path, "tokenizer", error) from error
    tokenizer = as_file_says(found, path)
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{path}: the tokenizer has no EOS token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's EOS and those of the model's generation config."""
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = listed if isinstance(listed, list) else [listed]
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *(i for i in more if i is not None)]))


def _keep_lowest(config: PretrainedConfig, num_layers: int) -> None:
    """Cut the decoder of a text config to its lowest layers, in place."""
    there = config.num_hidden_layers
    if not 0 < num_layers <= there:
        raise ConfigError(f"reward.module.num_layers={num_layers}: the model has {there} layers; choose 1 to {there}")
    vars(config).update(vars(cut_to_layers(config, range(num_layers))))


def _head(model: PreTrainedModel, path: str) -> nn.Linear:
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise CheckpointError(
            f"{path}: {type(model).__name__} has no linear head `score` with one output; use a decoder-only model"
        )
    return head
