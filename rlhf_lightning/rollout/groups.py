"""Responses to one prompt that stand together in a rollout."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.types import PromptBatch, Rollout


def undecided(scores: Tensor, group_size: int) -> Tensor:
    """Rows, long [n], of the groups in which no two judged responses (no NaN) score differently; scores [B].

    >>> undecided(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2)
    tensor([0, 1])
    """
    groups = scores.view(-1, group_size)
    low, high = groups.nan_to_num(torch.inf).amin(1), groups.nan_to_num(-torch.inf).amax(1)
    return (low >= high).repeat_interleave(group_size).nonzero().squeeze(1)


def put(old: Tensor, rows: Tensor, new: Tensor, fill: float = 0, *, left: bool = False) -> Tensor:
    """``old`` [B, ...] with ``rows`` (long [n]) taken from ``new`` [n, ...], widened to the longer of the two.

    >>> put(torch.tensor([[1, 2], [3, 4]]), torch.tensor([0]), torch.tensor([[5, 6, 7]]))
    tensor([[5, 6, 7],
            [3, 4, 0]])
    """
    if old.dim() > 1:
        width = max(old.shape[1], new.shape[1])
        gaps = [width - x.shape[1] for x in (old, new)]
        old, new = (pad(x, (gap, 0) if left else (0, gap), value=fill) for x, gap in zip((old, new), gaps, strict=True))
    return old.index_copy(0, rows.to(old.device), new.to(old.device))


def replaced(rollout: Rollout, rows: Tensor, fresh: Rollout, pad_token_id: int) -> Rollout:
    """The rollout with ``rows`` (long [n]) taken from ``fresh`` (n responses, to whatever prompts).

    Prompts and responses are widened to the longer of the two.
    """
    logprobs = context = asked = None
    if rollout.rollout_logprobs is not None and fresh.rollout_logprobs is not None:
        logprobs = put(rollout.rollout_logprobs, rows, fresh.rollout_logprobs)
    if rollout.context is not None or fresh.context is not None:
        old, new = (torch.zeros_like(r.mask) if r.context is None else r.context for r in (rollout, fresh))
        context = put(old, rows, new)
    if rollout.asked is not None or fresh.asked is not None:
        asked = _replaced_prompts(_asked(rollout), rows, _asked(fresh), pad_token_id)
    prompts = _replaced_prompts(_prompts(rollout), rows, _prompts(fresh), pad_token_id)
    return replace(
        rollout,
        prompt_ids=prompts.input_ids,
        prompt_mask=prompts.attention_mask,
        response_ids=put(rollout.response_ids, rows, fresh.response_ids, pad_token_id),
        mask=put(rollout.mask, rows, fresh.mask),
        finished=put(rollout.finished, rows, fresh.finished),
        rollout_logprobs=logprobs,
        weight_version=put(rollout.weight_version, rows, fresh.weight_version),
        rows=prompts.rows,
        context=context,
        asked=asked,
    )


def _prompts(rollout: Rollout) -> PromptBatch:
    return PromptBatch(rollout.prompt_ids, rollout.prompt_mask, rollout.rows)


def _asked(rollout: Rollout) -> PromptBatch:
    return rollout.asked or _prompts(rollout)


def _replaced_prompts(old: PromptBatch, rows: Tensor, new: PromptBatch, pad_token_id: int) -> PromptBatch:
    fresh = dict(zip(rows.tolist(), new.rows, strict=True))
    return PromptBatch(
        put(old.input_ids, rows, new.input_ids, pad_token_id, left=True),
        put(old.attention_mask, rows, new.attention_mask, left=True),
        tuple(fresh.get(i, row) for i, row in enumerate(old.rows)),
    )
