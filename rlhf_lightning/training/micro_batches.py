"""A rollout in micro-batches of responses of similar length, cut alike for evaluating and for learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from rlhf_lightning import signals
from rlhf_lightning.functional.lengths import cut
from rlhf_lightning.models.packing import adjacent_groups, balanced
from rlhf_lightning.types import Experience, Rollout

Part = TypeVar("Part", Rollout, Experience)


@dataclass(frozen=True)
class Schedule:
    """Responses on one rank."""

    rows: int  # of a rollout
    minibatch: int
    micro: int  # of a micro-batch; by length it may hold more that are shorter
    micro_batches: int  # of a minibatch
    by_length: bool
    packed: bool = False  # the rows of a micro-batch need not be of similar length

    def at_most(self, micro: int) -> Schedule:
        """The same with micro-batches of at most ``micro`` responses."""
        micro = min(micro, self.micro)
        return replace(self, micro=micro, micro_batches=max(self.micro_batches, -(-self.minibatch // micro)))


def micro_batches(rollout: Rollout, schedule: Schedule) -> list[Tensor]:
    """Rows of each micro-batch of a minibatch, as many on every rank, the largest first.

    Rows that will be packed are dealt out so that micro-batches hold about the same number of tokens, and neighbours
    with the same prompt stay together.

    Args:
        rollout: the responses of the minibatch on this rank.
        schedule: says how many micro-batches there are, and how they are cut.
    """
    if not schedule.by_length:
        return list(torch.arange(len(rollout)).split(schedule.micro))
    lengths = torch.stack([rollout.prompt_mask.sum(1), rollout.attended.sum(1)], dim=1).cpu()
    if not schedule.packed:
        return [torch.tensor(rows) for rows in cut(lengths, schedule.micro_batches)]
    owner = neighbours(rollout).cpu()
    if int(owner[-1]) + 1 < schedule.micro_batches:
        owner = torch.arange(len(owner))
    first = torch.cat([owner.new_ones(1), owner.diff()]).bool()
    widths = lengths[first, 0].index_add(0, owner, lengths[:, 1])
    place = torch.tensor(balanced(widths.tolist(), schedule.micro_batches).rows)
    tokens = torch.zeros(schedule.micro_batches, dtype=torch.long).index_add(0, place, widths)
    return [(place[owner] == number).nonzero().squeeze(1) for number in tokens.argsort(descending=True)]


def most_tokens(rollout: Rollout, schedule: Schedule) -> int:
    """Tokens of the largest micro-batch of a minibatch: real ones where rows are packed, else padding as well."""
    part = take(rollout, micro_batches(rollout, schedule)[0], schedule)
    return int(part.attention_mask.sum()) if schedule.by_length and schedule.packed else part.input_ids.numel()


def neighbours(rollout: Rollout) -> Tensor:
    """Which responses stand beside each other and answer the same prompt, long [B]; a model computes it once."""
    return adjacent_groups(rollout.prompt_ids, rollout.prompt_mask)


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
