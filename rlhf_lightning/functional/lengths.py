"""Cut rows by length into groups that hold little padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_IMPOSSIBLE = 2**60  # more padded tokens than any group has


def cut(lengths: Sequence[int] | Tensor, pieces: int, *, sequences: Sequence[int] | None = None) -> list[list[int]]:
    """Exactly ``pieces`` groups of rows of similar length, with the fewest padded tokens.

    The rows are sorted by length and the sorted order is cut where the sum over groups of sequences times longest
    length is smallest (dynamic programming over the places of the cuts, O(n^2 pieces)). With one length per row no
    grouping in another order is better: a row may move to the group with the shortest longest row that is not shorter.

    To bound memory, no group has more padded tokens than one of an even cut could have: those of ceil(n / pieces) rows
    with the most sequences and the longest length.

    Args:
        lengths: tokens of each row [n]; or [n, k] where a row has k parts that are padded apart, as a prompt on its
            left and a response on its right. A group is as wide as the sum of its longest parts.
        pieces: number of groups, 1 .. n.
        sequences: how many sequences of that length each row holds [n]; None means 1.

    Returns:
        indices of the rows of each group, ascending; the group with the most padded tokens comes first.

    Raises:
        ValueError: ``pieces`` is not in 1 .. n.

    >>> cut([3, 9, 2, 8, 3], pieces=2)
    [[1, 3], [0, 2, 4]]
    """
    parts = torch.as_tensor(lengths).cpu().long().reshape(len(lengths), -1)
    count = torch.ones(len(parts), dtype=torch.long) if sequences is None else torch.as_tensor(sequences).long()
    if not 1 <= pieces <= len(parts):
        raise ValueError(f"{len(parts)} rows cannot be cut into {pieces} groups that are not empty")
    order = parts.sum(1).argsort(descending=True, stable=True)
    cost = _padded_tokens(parts[order], count[order])
    limit = -(-len(parts) // pieces) * int(count.max()) * int(parts.amax(0).sum())
    ends = _best_ends(cost.masked_fill(cost > limit, _IMPOSSIBLE), pieces)
    spans = sorted(zip([0, *ends[:-1]], ends, strict=True), key=lambda span: -int(cost[span[0], span[1] - 1]))
    return [sorted(order[start:end].tolist()) for start, end in spans]


def _padded_tokens(parts: Tensor, count: Tensor) -> Tensor:
    """Padded tokens of the group of rows i .. j, long [n, n]; `_IMPOSSIBLE` below the diagonal."""
    rows = torch.arange(len(parts))
    inside = rows[:, None] <= rows
    width = torch.where(inside[..., None], parts, 0).cummax(1).values.sum(-1)
    until = count.cumsum(0)
    return torch.where(inside, width * (until - (until - count)[:, None]), _IMPOSSIBLE)


def _best_ends(cost: Tensor, pieces: int) -> list[int]:
    """Where each of ``pieces`` groups of consecutive rows ends so that their cost [n, n] sums to the least."""
    n = len(cost)
    best = torch.full((n + 1,), _IMPOSSIBLE)  # of the rows before j, in as many groups as rounds were taken
    best[0] = 0
    starts = []
    for _ in range(pieces):
        total, start = (best[:-1, None] + cost).min(0)
        best = torch.cat([torch.tensor([_IMPOSSIBLE]), total.clamp(max=_IMPOSSIBLE)])
        starts.append(start.tolist())
    ends = [n]
    for start in reversed(starts[1:]):
        ends.append(start[ends[-1] - 1])
    return ends[::-1]
