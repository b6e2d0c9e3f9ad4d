"""Which prompts of a batch are read together, so that little is computed twice or for padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def first_column(attention: Tensor) -> Tensor:
    """Column of the first token of each row, long [B]; attention [B, P]."""
    return attention.long().argmax(1)


def longest_first(attention: Tensor) -> Tensor:
    """Rows by number of columns from their first token on, rows of a group together, long [B]; attention [B, P].

    >>> longest_first(torch.tensor([[False, True], [True, True], [False, True]]))
    tensor([1, 0, 2])
    """
    return first_column(attention).argsort(stable=True).cpu()


def consecutive(input_ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the distinct prompt of each row, long [B], and the first row of each distinct prompt, long [U].

    Only neighbours are compared; both arguments [B, P].

    >>> consecutive(torch.tensor([[5], [5], [7]]), torch.ones(3, 1, dtype=torch.bool))
    (tensor([0, 0, 1]), tensor([0, 2]))
    """
    new = torch.ones_like(attention[:, 0])
    new[1:] = ((input_ids[1:] != input_ids[:-1]) | (attention[1:] != attention[:-1])).any(1)
    return new.cumsum(0) - 1, new.nonzero().squeeze(1)


def alike(lengths: Sequence[int]) -> list[slice]:
    """Runs of descending lengths within each of which the shortest is at least 3/4 of the longest.

    >>> alike([8, 7, 5, 4, 1])
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    starts = [0]
    for index, length in enumerate(lengths):
        if 4 * length < 3 * lengths[starts[-1]]:
            starts.append(index)
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(lengths)], strict=True)]
