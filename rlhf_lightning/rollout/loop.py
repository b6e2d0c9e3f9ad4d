"""The default engine: our own decode loop over a Hugging Face model.

Finished rows leave the batch, log-probabilities are kept while sampling, and the random numbers of a row do not
depend on which other rows are still running: sampling inverts the cumulative distribution at uniforms drawn for the
whole rollout in advance. So rows may be decoded in any order and company.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning import signals
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.sequences import position_ids
from rlhf_lightning.models.memory import halved
from rlhf_lightning.private_api.transformers import attention_of
from rlhf_lightning.rollout.answers import Answers
from rlhf_lightning.rollout.broken_logits import broken_logits
from rlhf_lightning.rollout.cache import Pack, empty_cache, is_plain, joined
from rlhf_lightning.rollout.copies import autocast_dtype, refreshed
from rlhf_lightning.rollout.decoding import cache_argument, check_decoding
from rlhf_lightning.rollout.engine import Sampling, check_context, decoding
from rlhf_lightning.rollout.lockstep import Lockstep
from rlhf_lightning.rollout.prefill import alike, consecutive, first_column, longest_first
from rlhf_lightning.rollout.sample import sample
from rlhf_lightning.rollout.stop import StopStrings
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import PromptBatch, Rollout

DType = Literal["auto", "float32", "bfloat16", "float16"]
Gather = Literal["model", "layer"]
LOOK_EVERY = 16  # tokens between two looks, on devices that compute while Python goes on


class LoopEngine:
    """Decode with a key-value cache, one token for all running rows at a time.

    Args:
        compact_below: when at most this share of the rows in the cache is still running, the others are dropped from
            it.
        micro_batch_size: prompts decoded at once; None decodes the whole batch together.
        dtype: decode with a copy of the weights in this dtype (float32, bfloat16, float16), refreshed at every `sync`.
            Training corrects for the gap: it recomputes the log-probabilities, so that ratios start at 1, logs their
            distance to those of the copy (``sampling/sampling_logp_difference``), and with ``ppo.settings.correction``
            weighs tokens by the ratio of the two. None uses the policy itself. ``auto`` copies on CUDA, in the dtype of
            autocast where training has it: reading the weights is what a token costs. Elsewhere, and where weights are
            sharded, which are gathered in that dtype, it uses the policy.
        share_prefill: read a prompt that stands in consecutive rows (a group) once for all of them, and prompts of like
            length together, longest first, so that little padding is computed. False reads all rows as they come.
            Where a model keeps more than the keys and values of all tokens (sliding windows, recurrent states), rows
            are read as they come in any case.
        look_every: tokens between two looks at which rows have ended. Each look waits for the device; until the next
            one rows that have ended are decoded in vain. None: 1 on a CPU, 16 elsewhere.

    Raises:
        ConfigError: an unknown ``dtype``.
    """

    def __init__(
        self,
        compact_below: float = 0.75,
        micro_batch_size: int | None = None,
        dtype: DType | None = "auto",
        share_prefill: bool = True,
        look_every: int | None = None,
        gather: Gather = "model",
    ) -> None:
        if dtype is not None and dtype not in get_args(DType):
            raise ConfigError(
                f"rollout.dtype={dtype!r}: choose one of {', '.join(get_args(DType))}, or null for the policy's own"
            )
        if gather not in get_args(Gather):
            raise ConfigError(f"rollout.gather={gather!r}: choose one of {', '.join(get_args(Gather))}")
        require("rollout.compact_below", compact_below, at_least=0, at_most=1)
        require("rollout.micro_batch_size", micro_batch_size, at_least=1, whole=True)
        require("rollout.look_every", look_every, at_least=1, whole=True)
        self.compact_below = compact_below
        self.micro_batch_size = micro_batch_size
        self.dtype = dtype
        self.share_prefill = share_prefill
        self.look_every = look_every
        self.holds_policy = gather == "model"
        self.in_step = gather == "layer"  # with other ranks
        self._lockstep = Lockstep(None)
        self._copy: PreTrainedModel | None = None
        self._generator = torch.Generator()
        self._policy: PreTrainedModel | None = None
        self._eos: tuple[int, ...] = ()
        self._pad = 0
        self._version = 0
        self._most_rows: int | None = None  # decoded at once, since memory ran out
        self._tried: PreTrainedModel | None = None
        self._ready_masks = False  # given to the model, which waits for the device where it makes them itself

    @property
    def is_exact(self) -> bool:
        """Whether it decodes with the very weights that training computes with."""
        return self.dtype is None or (self.dtype == "auto" and self._copy is None)

    @property
    def samples_ahead(self) -> bool:
        """Whether it may sample in a thread while the policy learns: not in step with other ranks."""
        return not self.in_step

    def sync(self, policy: PreTrainedModel, eos_token_ids: Sequence[int], pad_token_id: int, version: int) -> None:
        """Sample with these weights, or with a copy of them in another dtype.

        Raises:
            ConfigError: a copy was asked for, but the weights are sharded.
        """
        dtype = autocast_dtype(policy) if self.dtype == "auto" else self.dtype and getattr(torch, self.dtype)
        if dtype is not None:
            self._copy = policy = refreshed(self._copy, policy, dtype)
        self._lockstep = Lockstep(None if self.holds_policy else policy)
        self._policy, self._eos, self._pad, self._version = policy, tuple(eos_token_ids), pad_token_id, version

    def seed(self, seed: int) -> None:
        """Seed the private generator (CPU; the same numbers on every device)."""
        self._generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """State of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the generator."""
        self._generator.set_state(state["generator"])

    def generate(
        self, prompts: PromptBatch, sampling: Sampling, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Rollout:
        """One answer per prompt row; responses are trimmed to the longest of the batch.

        Raises:
            ConfigError: prompt and answer do not fit the model's positions, or stop strings come without a tokenizer.
            RuntimeError: `sync` was not called.
            NumericalError: the policy gave logits that are not finite.
            OutOfMemory: not even one row fits.
        """
        if self._policy is None:
            raise RuntimeError("LoopEngine.generate before sync(policy)")
        check_context(self._policy, prompts.input_ids.shape[1], sampling)
        stop = StopStrings(sampling.stop, tokenizer)
        uniforms = torch.rand(len(prompts), sampling.max_new_tokens, generator=self._generator, dtype=torch.float64)
        order = longest_first(prompts.attention_mask) if self.share_prefill else torch.arange(len(prompts))

        def decode(size: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
            parts, groups = [], order.split(size)
            more = self._lockstep.most(len(groups)) - len(groups)  # on other ranks
            for rows in [*groups, *[order[:1]] * more]:
                part = prompts.select(rows)
                used = slice(int(first_column(part.attention_mask).min()), None)
                ids, attention = part.input_ids[:, used], part.attention_mask[:, used]
                parts.append(self._decode(ids, attention, uniforms[rows], sampling, stop))
            return parts[: len(groups)]

        size = min(self.micro_batch_size or len(prompts), self._most_rows or len(prompts), len(prompts))
        with decoding(self._policy):
            self._try()
            advice = "lower sampling.max_new_tokens or data.max_prompt_length"
            parts, fitted = halved(decode, size, "sampling", advice, smallest=size if self._lockstep.on else 1)
            back = order.argsort().to(prompts.input_ids.device)
            ids, logprobs, mask, finished = (torch.cat(column)[back] for column in zip(*parts, strict=True))
            if (bad := logprobs.isnan()).any():  # looked for once, since each look waits for the device
                raise broken_logits(self._policy, prompts.input_ids, prompts.attention_mask, bad)
        if fitted < size:
            self._most_rows = fitted
        width = int(mask.sum(1).max())
        return Rollout(
            prompt_ids=prompts.input_ids,
            prompt_mask=prompts.attention_mask,
            response_ids=ids[:, :width],
            mask=mask[:, :width],
            finished=finished,
            rollout_logprobs=logprobs[:, :width],
            weight_version=torch.full_like(prompts.input_ids[:, 0], self._version),
            rows=prompts.rows,
        )

    def _try(self) -> None:
        """See `check_decoding`; once for a policy, with rows that leave the cache."""
        if self._tried is self._policy or not isinstance(self._policy, PreTrainedModel):
            return

        def decode(ids: Tensor, attention: Tensor) -> list[Tensor]:
            logits, cache = self._prefill(ids, attention)
            rows, positions = [[row] for row in logits], attention.sum(1, keepdim=True)
            for first in (0, 1):  # the second step without the first row
                if first:
                    cache.reorder_cache(torch.ones_like(ids[:1, 0]))  # type: ignore[arg-type]
                token = torch.stack([row[-1].argmax() for row in rows[first:]])
                attention = torch.cat([attention[-len(token) :], torch.ones_like(attention[first:, :1])], dim=1)
                logits = self._forward(token[:, None], attention, positions[first:] + first, cache)
                for row, new in zip(rows[first:], logits, strict=True):
                    row.append(new)
            return [torch.stack(row).float() for row in rows]

        plain = is_plain(empty_cache(self._policy.config)) and attention_of(self._policy.config) == "sdpa"
        self._ready_masks = plain and self._looks(self._policy.device) > 1
        try:
            check_decoding(self._policy, decode, "loop")
        except ConfigError:
            if not self._ready_masks:
                raise
            self._ready_masks = False  # not for this kind of model
            check_decoding(self._policy, decode, "loop")
        self._tried = self._policy

    def _looks(self, device: torch.device) -> int:
        return self.look_every or (1 if device.type == "cpu" else LOOK_EVERY)

    def _decode(
        self, input_ids: Tensor, attention: Tensor, uniforms: Tensor, sampling: Sampling, stop: StopStrings
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Response ids, log-probabilities and mask, each [B, max_new_tokens], and which answers ended, [B]."""
        rows, steps, device = len(input_ids), sampling.max_new_tokens, input_ids.device
        answers = Answers(rows, steps, self._pad, self._eos, stop, device)
        eos, look_every = torch.tensor(self._eos, device=device), self._looks(device)
        uniforms = uniforms.to(device)
        running = torch.arange(rows, device=device)  # rows in the cache
        logits, cache = self._prefill(input_ids, attention)
        positions = attention.sum(1, keepdim=True)  # of the next token
        for step in range(steps):
            if not self._lockstep.on:  # others would wait for this rank
                signals.poll()
            forbidden = eos if step < sampling.min_new_tokens else None
            token, logprob = sample(logits, uniforms[running, step], sampling, forbidden)
            answers.add(step, running, token, logprob)
            if step == steps - 1:
                break
            if (step + 1) % look_every == 0:
                live = answers.unfinished(running, step + 1)
                if not self._lockstep.most(live.any()):
                    break
                if live.float().mean() <= self.compact_below:
                    keep = live.nonzero().squeeze(1) if live.any() else running[:1] * 0
                    cache.reorder_cache(keep)  # type: ignore[arg-type]
                    running, token, attention, positions = (
                        state[keep] for state in (running, token, attention, positions)
                    )
            attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
            logits = self._forward(token[:, None], attention, positions, cache)
            positions = positions + 1
        answers.unfinished(running, step + 1)
        return answers.ids, answers.logprobs, answers.mask, answers.finished

    def _prefill(self, input_ids: Tensor, attention: Tensor) -> tuple[Tensor, DynamicCache]:
        """Logits [B, V] after the prompts, and their keys and values."""
        assert self._policy is not None
        config = self._policy.config
        cache = empty_cache(config)
        if not (self.share_prefill and is_plain(cache)):
            return self._forward(input_ids, attention, position_ids(attention), cache), cache
        prompt, first = consecutive(input_ids, attention)
        columns = attention.shape[1] - first_column(attention)[first]
        packs, logits = [], []
        for part in [slice(0, len(columns))] if self._lockstep.on else alike(columns.tolist()):
            width = int(columns[part].max())
            mask = attention[first[part], -width:]
            pack = Pack(empty_cache(config, roomy=False), part.start, width)
            logits.append(self._forward(input_ids[first[part], -width:], mask, position_ids(mask), pack.cache))
            packs.append(pack)
        return torch.cat(logits)[prompt], joined(packs, prompt, config)

    def _forward(self, token: Tensor, attention: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        assert self._policy is not None
        name, mask = cache_argument(self._policy), attention.long()
        if self._ready_masks and token.shape[1] == 1:
            mask = attention[:, None, None].bool()
        given: Any = {name: cache, "attention_mask": None if name == "cache_params" and token.shape[1] == 1 else mask}
        out = self._policy(input_ids=token, position_ids=positions, use_cache=True, logits_to_keep=1, **given)
        return out.logits[:, -1]
