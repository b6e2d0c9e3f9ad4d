"""Whether the parts of a model folder that someone else wrote belong together: weights, config, special tokens."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.models.tokens import TokenizerFault, encode

MAX_LAYERS = 10_000
FEW = 4  # tokens that may end an answer whatever the size of the vocabulary; above that a tenth of it
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")  # of older files, computed since
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
log = logging.getLogger(__name__)


def check_config(config: PretrainedConfig, path: str) -> None:
    """Raise `CheckpointError` for a number of layers that no model has, before they are made."""
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and not 0 < layers <= MAX_LAYERS:
        raise CheckpointError(f"{path}: config.json: num_hidden_layers={layers}: must be from 1 to {MAX_LAYERS}")


def check_templates(folder: Path) -> None:
    """Refuse chat templates that are links to a file elsewhere: any text is one, and it is handed on with the model.

    Raises:
        CheckpointError: names the link. Links of the hub's cache, which lead to its ``blobs``, pass.
    """
    places = (folder.resolve(), *(parent / "blobs" for parent in folder.resolve().parents[1:2]))
    for file in (*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*")):
        if not any(file.resolve().is_relative_to(place) for place in places):
            raise CheckpointError(f"{file}: leads to {file.resolve()}; put a copy of the template there, not a link")


def layer_of(name: str) -> int:
    """The number of the layer that a weight belongs to; -1 outside of all."""
    layer = _LAYER.search(name)
    return -1 if layer is None else int(layer[1])


def check_unused(
    unused: Iterable[str], path: str, *, heads: Collection[str] = (), kept_layers: int | None = None
) -> None:
    """Refuse a file with weights that the model does not have: its config describes another, smaller model.

    Args:
        unused: names that are in the file and not in the model.
        path: of the folder, for messages.
        heads: parts of a language model that a reward model leaves behind.
        kept_layers: layers from this one on are left behind; None leaves none.

    Raises:
        CheckpointError: names the first, and how many there are.
    """

    def expected(name: str) -> bool:
        above = kept_layers is not None and layer_of(name) >= kept_layers
        return bool(above or _BUFFERS.search(name) or name.split(".")[0] in heads)

    strange = sorted(name for name in unused if not expected(name))
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise CheckpointError(
            f"{path}: {len(strange)} weights of the file have no place in the model that config.json describes "
            f"({', '.join(name[:100] for name in strange[:3])}{more}); use the config.json of these weights (is "
            "num_hidden_layers right?), or delete them from the file"
        )


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Whether every id that the tokenizer gives, or a config names, is one of the model's.

    Raises:
        CheckpointError: an id beyond the vocabulary, or no number, or so many end tokens that no answer could be long.
    """
    try:
        size = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    except (NotImplementedError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: a {model.config.model_type} model has no table of embeddings for its tokens, or hides it; give a "
            "decoder-only language model"
        ) from error
    _check_vocabulary(tokenizer, size, path)
    where = f"{path}: generation_config.json or config.json"
    for part in (getattr(model, "generation_config", None), model.config.get_text_config()):
        for name in ("eos_token_id", "bos_token_id"):
            given = getattr(part, name, None)
            listed = given if isinstance(given, (list, tuple)) else [given]
            for value in listed:
                _check_id(value, name, size, where)
            if len(set(listed)) > max(FEW, size // 10):
                raise CheckpointError(
                    f"{where}: {name} lists {len(set(listed))} of {size} tokens; answers would end at nearly "
                    "everything. List those that end an answer"
                )
    _check_id(getattr(getattr(model, "generation_config", None), "pad_token_id", None), "pad_token_id", size, where, -1)
    if str(tokenizer.eos_token).isalpha():
        log.warning(
            "%s: the tokenizer's eos_token is %r, which looks like an ordinary word: every answer and every text ends "
            "there. Is that meant?", path, tokenizer.eos_token,
        )  # fmt: skip


def _check_id(value: Any, name: str, size: int, where: str, lowest: int = 0) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value < size:
        raise CheckpointError(f"{where}: {name}={value!r:.60}: must be a token id from {lowest} to {size - 1}, or null")


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, path: str) -> None:
    try:
        added = max(encode(tokenizer, ["a"], special=True)[0], default=-1)  # what it puts around a text is no word
    except TokenizerFault as fault:
        raise CheckpointError(f"{path}: {fault}") from fault
    largest = max(*tokenizer.get_vocab().values(), added, -1)
    if largest < 0:
        raise CheckpointError(f"{path}: the tokenizer has no tokens; use the tokenizer of this model")
    if largest >= size:
        raise CheckpointError(
            f"{path}: the tokenizer has token ids up to {largest}, but the model has a vocabulary of {size}; use the "
            "tokenizer of this model, or resize the model's embeddings and save it again"
        )
