"""Responses to one prompt that stand together in a rollout."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.types import Rollout


def undecided(scores: Tensor, group_size: int) -> Tensor:
    """Rows, long [n], of the groups in which no two judged responses (no NaN) score differently; scores [B].

    >>> undecided(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2)
    tensor([0, 1])
    """
    groups = scores.view(-1, group_size)
    low, high = groups.nan_to_num(torch.inf).amin(1), groups.nan_to_num(-torch.inf).amax(1)
    return (low >= high).repeat_interleave(group_size).nonzero().squeeze(1)


def replaced(rollout: Rollout, rows: Tensor, fresh: Rollout, pad_token_id: int) -> Rollout:
    """The rollout with ``rows`` (long [n]) taken from ``fresh`` (n responses to the same prompts).

    Prompts, to which an environment may have added, and responses are widened to the longer of the two.
    """

    def merged(old: Tensor, new: Tensor, fill: float = 0, left: bool = False) -> Tensor:
        width = max(old.shape[1], new.shape[1])
        old, new = (
            pad(x, (width - x.shape[1], 0) if left else (0, width - x.shape[1]), value=fill) for x in (old, new)
        )
        return old.index_copy(0, rows.to(old.device), new)

    logprobs = context = None
    if rollout.rollout_logprobs is not None and fresh.rollout_logprobs is not None:
        logprobs = merged(rollout.rollout_logprobs, fresh.rollout_logprobs)
    if rollout.context is not None or fresh.context is not None:
        old, new = (torch.zeros_like(r.mask) if r.context is None else r.context for r in (rollout, fresh))
        context = merged(old, new)
    new_rows = dict(zip(rows.tolist(), fresh.rows, strict=True))
    return replace(
        rollout,
        prompt_ids=merged(rollout.prompt_ids, fresh.prompt_ids, pad_token_id, left=True),
        prompt_mask=merged(rollout.prompt_mask, fresh.prompt_mask, left=True),
        response_ids=merged(rollout.response_ids, fresh.response_ids, pad_token_id),
        mask=merged(rollout.mask, fresh.mask),
        finished=rollout.finished.index_copy(0, rows.to(rollout.finished.device), fresh.finished),
        rollout_logprobs=logprobs,
        rows=tuple(new_rows.get(i, row) for i, row in enumerate(rollout.rows)),
        context=context,
    )
