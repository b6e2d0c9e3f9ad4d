"""The alternative engine: transformers' own `generate`. Slower with ragged lengths, but as well tested as it gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from rlhf_lightning import signals
from rlhf_lightning.checkpoint.provenance import PROVENANCE
from rlhf_lightning.console.display import plain
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.masking import response_mask
from rlhf_lightning.models.memory import halved
from rlhf_lightning.private_api.transformers import generation_defaults
from rlhf_lightning.rollout.broken_logits import FiniteLogits
from rlhf_lightning.rollout.decoding import check_decoding
from rlhf_lightning.rollout.engine import CallSeeds, Sampling, check_context, decoding
from rlhf_lightning.rollout.stop import StopStrings
from rlhf_lightning.types import PromptBatch, Rollout

_KEPT = {"eos_token_id", "pad_token_id", "bos_token_id", "transformers_version", "_from_model_config"}


class HFGenerateEngine(CallSeeds):
    """Sample with `PreTrainedModel.generate`; log-probabilities are left to the training forward.

    Args:
        cache: of keys and values. ``static`` makes room for the longest answer at once, and on CUDA transformers
            compiles the decoding step for it; ``dynamic`` grows with every token.

    Raises:
        ConfigError: there is no such cache.
    """

    def __init__(self, cache: Literal["dynamic", "static"] = "dynamic") -> None:
        if cache not in ("dynamic", "static"):
            raise ConfigError(f"rollout.cache={cache}: choose dynamic or static")
        self.cache = cache
        self._policy: PreTrainedModel | None = None
        self._eos: tuple[int, ...] = ()
        self._pad = 0
        self._version = 0
        self._tried: PreTrainedModel | None = None

    def sync(self, policy: PreTrainedModel, eos_token_ids: Sequence[int], pad_token_id: int, version: int) -> None:
        """Sample from this model; it is used as it is."""
        self._policy, self._eos, self._pad, self._version = policy, tuple(eos_token_ids), pad_token_id, version

    def generate(
        self, prompts: PromptBatch, sampling: Sampling, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Rollout:
        """One answer per prompt row.

        Raises:
            ConfigError: prompt and answer do not fit the model's positions, or stop strings come without a tokenizer.
            RuntimeError: `sync` was not called.
            NumericalError: the policy gave logits that are not finite.
            OutOfMemory: the batch does not fit.
        """
        if self._policy is None:
            raise RuntimeError("HFGenerateEngine.generate before sync(policy)")
        check_context(self._policy, prompts.input_ids.shape[1], sampling)
        stop = StopStrings(sampling.stop, tokenizer)
        device = prompts.input_ids.device
        streams = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with decoding(self._policy), neutral(self._policy), streams:
            self._try()
            torch.manual_seed(self.call_seed())  # `generate` takes no generator
            config = generation_config(sampling, self._eos, self._pad)
            config.cache_implementation = "static" if self.cache == "static" else None
            sample = partial(responses, self._policy, prompts, config, stop)
            advice = "use rollout=loop, which decodes fewer at a time by itself, or lower ppo.data.batch_size"
            found, _ = halved(lambda rows: sample(), rows := len(prompts), "sampling", advice, smallest=rows)
        self._calls += 1
        return Rollout(
            prompt_ids=prompts.input_ids,
            prompt_mask=prompts.attention_mask,
            response_ids=found.ids,
            mask=found.mask,
            finished=found.finished,
            rollout_logprobs=None,
            weight_version=torch.full_like(prompts.input_ids[:, 0], self._version),
            rows=prompts.rows,
        )

    def _try(self) -> None:
        """See `check_decoding`; once for a policy."""
        if self._tried is self._policy or not isinstance(self._policy, PreTrainedModel):
            return
        generate: Any = self._policy.generate

        def decode(ids: Tensor, attention: Tensor) -> Sequence[Tensor]:
            greedy = GenerationConfig(
                do_sample=False,
                max_new_tokens=3,
                pad_token_id=self._pad,
                output_logits=True,
                return_dict_in_generate=True,
            )
            out = generate(input_ids=ids, attention_mask=attention.long(), generation_config=greedy)
            return torch.stack(out.logits, dim=1).unbind()

        check_decoding(self._policy, decode, "hf")
        self._tried = self._policy


class Responses(NamedTuple):
    """What `generate` wrote."""

    ids: Tensor  # long [B, T]
    mask: Tensor  # bool [B, T], True up to the token that ended the response
    finished: Tensor  # bool [B], True where the response ended by itself


def responses(
    policy: PreTrainedModel,
    prompts: PromptBatch,
    config: GenerationConfig,
    stop: StopStrings,
    streamer: Any = None,
) -> Responses:
    """One answer per prompt row by `PreTrainedModel.generate`, from torch's global random stream; call in `decoding`.

    Args:
        policy: who answers.
        prompts: on its device.
        config: all that `generate` is to know; its ``eos_token_id`` is a list.
        stop: strings that end an answer.
        streamer: told of each token, see `transformers.TextStreamer`.

    Raises:
        NumericalError: the policy gave logits that are not finite.
    """
    stopped = _StopAt(stop, prompts)
    generate: Any = policy.generate
    ids = generate(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask.long(),
        generation_config=config,
        stopping_criteria=[stopped],
        logits_processor=[FiniteLogits(policy, prompts.input_ids, prompts.attention_mask)],
        streamer=streamer,
    )
    response = ids[:, prompts.input_ids.shape[1] :]
    ends: Any = config.eos_token_id
    columns = torch.arange(response.shape[1], device=response.device)
    mask = response_mask(response, ends) & (columns < stopped.lengths[:, None])
    last = response.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
    ended = torch.isin(last, torch.tensor(ends, device=response.device))
    return Responses(response, mask, ended | (mask.sum(1) == stopped.lengths))


def generation_config(sampling: Sampling, eos_token_ids: Sequence[int], pad_token_id: int) -> GenerationConfig:
    """The same distribution in the words of transformers; stop strings are left to the engines."""
    return GenerationConfig(
        do_sample=True,
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens or None,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        eos_token_id=list(eos_token_ids),
        pad_token_id=pad_token_id,
        use_cache=True,
    )


@contextmanager
def neutral(policy: PreTrainedModel) -> Iterator[None]:
    """Without the model's own generation config, which `generate` would fill in where ours says nothing."""
    own, policy.generation_config = policy.generation_config, GenerationConfig()
    try:
        yield
    finally:
        policy.generation_config = own


def warn_of_unused_fields(policy: PreTrainedModel | None, sampling: Sampling) -> None:
    """Warn where the generation config of a model asks for another distribution; its end tokens are used.

    That of a folder of this library is how a stage has sampled, of which `sampling_note` tells.
    """
    own = getattr(policy, "generation_config", None)
    if own is None or (Path(getattr(policy, "name_or_path", "")) / PROVENANCE).is_file():
        return
    used = generation_defaults() | generation_config(sampling, (), 0).to_dict()
    unused = [
        plain(f"{name}={value!r}")[:60]
        for name, value in own.to_dict().items()
        if name not in _KEPT and (value or None) != (used.get(name) or None) and value is not None
    ]
    if unused:
        more = f" and {len(unused) - 12} more" if len(unused) > 12 else ""
        rank_zero_warn(
            f"generation_config.json of the policy: {', '.join(unused[:12])}{more}: not used; answers are drawn as "
            "`sampling` says"
        )


class _StopAt(StoppingCriteria):
    """`StopStrings` for `generate`; ``lengths``, long [B], are those of the responses that a string has ended.

    It is asked after every token, and so also the place where a run that is told to stop does.
    """

    def __init__(self, stop: StopStrings, prompts: PromptBatch) -> None:
        self._stop, self._prompt_length = stop, prompts.input_ids.shape[1]
        self.lengths = torch.full_like(prompts.input_ids[:, 0], torch.iinfo(torch.long).max)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        signals.poll()
        response = input_ids[:, self._prompt_length :]
        now = self._stop(response)
        self.lengths = torch.where(now, self.lengths.clamp(max=response.shape[1]), self.lengths)
        return now
