"""A rollout in micro-batches of responses of similar length, cut alike for evaluating and for learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rlhf_lightning import signals
from rlhf_lightning.functional.lengths import cut
from rlhf_lightning.models.prefix import adjacent_groups
from rlhf_lightning.modules.settings import Schedule
from rlhf_lightning.types import Experience, Rollout

Part = TypeVar("Part", Rollout, Experience)
SHARED = 0.8  # keep groups together where that leaves at most this share of the tokens


def micro_batches(rollout: Rollout, schedule: Schedule) -> list[Tensor]:
    """Rows of each micro-batch of a minibatch, as many on every rank.

    Args:
        rollout: the responses of the minibatch on this rank.
        schedule: says how many micro-batches there are, and whether they are cut by length or in order.
    """
    if not schedule.by_length:
        return list(torch.arange(len(rollout)).split(schedule.micro))
    lengths = torch.stack([rollout.prompt_mask.sum(1), rollout.lengths], dim=1)
    rows = cut(lengths, schedule.micro_batches)
    together = _whole_groups(rollout, lengths, schedule)
    plain = sum(len(some) * int(lengths[some].amax(0).sum()) for some in rows)
    if together is not None and together.padded < SHARED * plain:
        rows = together.rows
    return [torch.tensor(some) for some in rows]


class _Groups(NamedTuple):
    rows: list[list[int]]  # of each micro-batch
    padded: int  # tokens of all of them


def _whole_groups(rollout: Rollout, lengths: Tensor, schedule: Schedule) -> _Groups | None:
    """As many micro-batches of whole groups, in which a prompt is computed once; None where groups are not whole."""
    size = schedule.group_size
    count = len(rollout) // size
    if size == 1 or len(rollout) % size or count < schedule.micro_batches:
        return None
    owner = adjacent_groups(rollout.prompt_ids, rollout.prompt_mask).view(count, size)
    if (owner != owner[:, :1]).any():
        return None  # a later pass, whose rows are shuffled
    width = lengths.view(count, size, 2)[:, 0, 0] + lengths.view(count, size, 2)[..., 1].sum(1)
    groups = cut(width, schedule.micro_batches)
    rows = [[group * size + i for group in some for i in range(size)] for some in groups]
    return _Groups(rows, sum(len(some) * int(width[some].max()) for some in groups))


def take(data: Part, rows: Tensor, schedule: Schedule) -> Part:
    """These rows, by length without the columns that are padding in all of them; a place to stop."""
    signals.poll()
    part = data.select(rows)
    return part.trimmed() if schedule.by_length else part


def evaluated(
    evaluate: Callable[[Rollout], Sequence[Tensor | None]], rollout: Rollout, schedule: Schedule
) -> list[Tensor | None]:
    """Results of ``evaluate`` for all rows, computed in the very micro-batches of the first pass of learning.

    Args:
        evaluate: gives tensors [b, t, ...] on the response or [b, s, ...] on prompt and response, of rows that may be
            trimmed.
        rollout: B rows.
        schedule: of learning.

    Returns:
        tensors [B, T, ...] or [B, S, ...], 0 where columns were trimmed; None where ``evaluate`` gave None.
    """
    minibatches = torch.arange(len(rollout)).split(schedule.minibatch)
    groups = [some[rows] for some in minibatches for rows in micro_batches(rollout.select(some), schedule)]
    parts = [take(rollout, rows, schedule) for rows in groups]
    columns = zip(*(evaluate(part) for part in parts), strict=True)
    return [None if column[0] is None else _placed(rollout, groups, parts, column) for column in columns]


def _placed(rollout: Rollout, groups: list[Tensor], parts: list[Rollout], results: Sequence[Tensor]) -> Tensor:
    """Each result at its rows and columns of the rollout."""
    on_response = results[0].shape[1] == parts[0].mask.shape[1]
    width = rollout.mask.shape[1] if on_response else rollout.input_ids.shape[1]
    out = results[0].new_zeros(len(rollout), width, *results[0].shape[2:])
    for rows, part, result in zip(groups, parts, results, strict=True):
        start = 0 if on_response else rollout.prompt_ids.shape[1] - part.prompt_ids.shape[1]
        out[rows.to(out.device), start : start + result.shape[1]] = result
    return out
