"""Pad rows of token ids into rectangles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any valid id; masks decide what counts, so EOS serves where there is no pad token."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids, long ``[B, longest]``, and the mask of real tokens, bool of the same shape.

    Args:
        rows: B lists of ids, not all empty.
        value: the id at pads.
        left: pads on the left instead of the right.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, span] = torch.as_tensor(row, dtype=torch.long)
        mask[index, span] = True
    return ids, mask
