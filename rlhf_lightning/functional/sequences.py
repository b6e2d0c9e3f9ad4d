"""Padding and positions of token sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def position_ids(attention_mask: Tensor) -> Tensor:
    """Position of each token among the tokens that count: ``cumsum(mask) - mask``, long ``[B, S]``, never below 0.

    >>> position_ids(torch.tensor([[False, False, True, True]]))
    tensor([[0, 0, 0, 1]])
    """
    counted = attention_mask.long()
    return counted.cumsum(1) - counted


def left_pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Sequences of different length as one tensor, padded on the left (prompts).

    Returns:
        ids long ``[B, P]`` and mask bool ``[B, P]``, True at the given tokens; ``P`` is the longest length.

    >>> left_pad([[7, 8], [9]], pad_id=0)
    (tensor([[7, 8],
            [0, 9]]), tensor([[ True,  True],
            [False,  True]]))
    """
    ids, mask = right_pad([list(reversed(s)) for s in sequences], pad_id)
    return ids.flip(1), mask.flip(1)


def right_pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Sequences of different length as one tensor, padded on the right (responses, demonstrations).

    Returns:
        ids long ``[B, T]`` and mask bool ``[B, T]``, True at the given tokens; ``T`` is the longest length.

    >>> right_pad([[7, 8], [9]], pad_id=0)[0]
    tensor([[7, 8],
            [9, 0]])
    """
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.long)
    width = max((len(s) for s in sequences), default=0)
    rows = [[*s, *[pad_id] * (width - len(s))] for s in sequences]
    ids = torch.tensor(rows, dtype=torch.long).reshape(len(rows), width)
    return ids, torch.arange(width) < lengths.unsqueeze(1)


def last_index(mask: Tensor) -> Tensor:
    """Index of the last True of each row, long ``[B]``; 0 for a row without any (see ``mask.any(1)``).

    >>> last_index(torch.tensor([[True, True, False], [False, False, False]]))
    tensor([1, 0])
    """
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, columns, 0).amax(1) if mask.shape[1] else columns.new_zeros(mask.shape[0])
