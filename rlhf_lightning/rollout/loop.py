"""The default engine: our own decode loop over a Hugging Face model.

Finished rows leave the batch, log-probabilities are kept while sampling, and the random numbers of a row do not
depend on which other rows are still running: sampling inverts the cumulative distribution at uniforms drawn for the
whole rollout in advance.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import DynamicCache, PreTrainedModel

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.sequences import position_ids
from rlhf_lightning.rollout.engine import Sampling, check_context, decoding
from rlhf_lightning.types import PromptBatch, Rollout


class LoopEngine:
    """Decode with a key-value cache, one token for all running rows at a time.

    Args:
        compact_below: when at most this share of the rows in the cache is still running, the others are dropped from
            it.
        micro_batch_size: prompts decoded at once; None decodes the whole batch together.
        dtype: decode with a copy of the weights in this dtype, for example bfloat16 where that is faster; refreshed at
            every `sync`. Training recomputes the log-probabilities and logs the gap. None uses the policy itself.
    """

    def __init__(
        self, compact_below: float = 0.75, micro_batch_size: int | None = None, dtype: str | None = None
    ) -> None:
        self.compact_below = compact_below
        self.micro_batch_size = micro_batch_size
        self.dtype: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
        self._copy: PreTrainedModel | None = None
        self._generator = torch.Generator()
        self._policy: PreTrainedModel | None = None
        self._eos: tuple[int, ...] = ()
        self._pad = 0
        self._version = 0

    def sync(self, policy: PreTrainedModel, eos_token_ids: Sequence[int], pad_token_id: int, version: int) -> None:
        """Sample with these weights, or with a copy of them in another dtype.

        Raises:
            ConfigError: a copy was asked for, but the weights are sharded.
        """
        if self.dtype is not None:
            self._copy = policy = refreshed(self._copy, policy, self.dtype)
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

    def generate(self, prompts: PromptBatch, sampling: Sampling) -> Rollout:
        """One answer per prompt row; responses are trimmed to the longest of the batch.

        Raises:
            ConfigError: prompt and answer do not fit the model's positions.
            RuntimeError: `sync` was not called.
        """
        if self._policy is None:
            raise RuntimeError("LoopEngine.generate before sync(policy)")
        check_context(self._policy, prompts.input_ids.shape[1], sampling)
        uniforms = torch.rand(len(prompts), sampling.max_new_tokens, generator=self._generator, dtype=torch.float64)
        size = self.micro_batch_size or len(prompts)
        parts = []
        with decoding(self._policy):
            for start in range(0, len(prompts), size):
                rows = slice(start, start + size)
                parts.append(
                    self._decode(prompts.input_ids[rows], prompts.attention_mask[rows], uniforms[rows], sampling)
                )
        ids, logprobs, mask = (torch.cat(column) for column in zip(*parts, strict=True))
        width = max(int(mask.sum(1).max()), 1)
        last = ids.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
        return Rollout(
            prompt_ids=prompts.input_ids,
            prompt_mask=prompts.attention_mask,
            response_ids=ids[:, :width],
            mask=mask[:, :width],
            finished=torch.isin(last, torch.tensor(self._eos, device=ids.device)),
            rollout_logprobs=logprobs[:, :width],
            weight_version=self._version,
            rows=prompts.rows,
        )

    def _decode(
        self, input_ids: Tensor, attention: Tensor, uniforms: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, steps, device = len(input_ids), sampling.max_new_tokens, input_ids.device
        ids = torch.full((rows, steps), self._pad, dtype=torch.long, device=device)
        logprobs = torch.zeros(rows, steps, device=device)
        mask = torch.zeros(rows, steps, dtype=torch.bool, device=device)
        eos = torch.tensor(self._eos, device=device)
        uniforms = uniforms.to(device)
        running = torch.arange(rows, device=device)  # rows in the cache
        live = torch.ones(rows, dtype=torch.bool, device=device)  # which of them have not ended
        cache, token, positions = DynamicCache(), input_ids, position_ids(attention)
        for step in range(steps):
            logits = self._forward(token, attention, positions, cache)
            token, logprob = sample(
                logits, uniforms[running, step], sampling, eos if step < sampling.min_new_tokens else None
            )
            ids[running[live], step], logprobs[running[live], step] = token[live], logprob[live]
            mask[running[live], step] = True
            live = live & ~torch.isin(token, eos)
            if not live.any():
                break
            if live.float().mean() <= self.compact_below:
                keep = live.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                running, token, attention, positions, live = (
                    running[keep],
                    token[keep],
                    attention[keep],
                    positions[keep],
                    live[keep],
                )
            token = token[:, None]
            attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
            positions = positions[:, -1:] + 1
        return ids, logprobs, mask

    def _forward(self, token: Tensor, attention: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        assert self._policy is not None
        out = self._policy(
            input_ids=token,
            attention_mask=attention.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()


@torch.no_grad()
def refreshed(copied: PreTrainedModel | None, policy: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of ``policy`` in ``dtype``, made on the first call and overwritten on later ones."""
    if any(isinstance(p, DTensor) for p in policy.parameters()):
        raise ConfigError("rollout.dtype: sharded weights cannot be copied for sampling; set rollout.dtype=null")
    if copied is None:
        fresh: Any = copy.deepcopy(policy)
        return fresh.to(dtype).eval().requires_grad_(False)
    for mine, theirs in zip(copied.parameters(), policy.parameters(), strict=True):
        mine.copy_(theirs)
    return copied


def sample(
    logits: Tensor, uniform: Tensor, sampling: Sampling, forbidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution.

    Args:
        logits: float [B, V].
        uniform: numbers in [0, 1), [B].
        sampling: temperature and truncation.
        forbidden: token ids that may not be drawn.

    Returns:
        token ids, long [B], and their log-probabilities under the tempered, untruncated distribution, float [B].
    """
    logprobs = (logits / sampling.temperature).log_softmax(-1)
    probs = truncate(logprobs, sampling, forbidden).exp()
    cumulative = probs.double().cumsum(-1)
    target = uniform[:, None].to(cumulative) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return token.squeeze(1), logprobs.gather(1, token).squeeze(1)


def truncate(logprobs: Tensor, sampling: Sampling, forbidden: Tensor | None = None) -> Tensor:
    """Log-probabilities [B, V] with what may not be drawn at minus infinity (not renormalised)."""
    if forbidden is not None:
        logprobs = logprobs.index_fill(-1, forbidden, float("-inf"))
    if sampling.top_k > 0:
        limit = logprobs.topk(min(sampling.top_k, logprobs.shape[-1])).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < limit, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logprobs.sort(descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        outside = (before >= sampling.top_p * ordered.exp().sum(-1, keepdim=True)).gather(1, order.argsort())
        logprobs = logprobs.masked_fill(outside, float("-inf"))
    return logprobs
