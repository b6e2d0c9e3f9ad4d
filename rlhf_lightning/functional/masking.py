"""Sums, means and whitening over the entries that count.

Excluded entries are replaced before any arithmetic, never multiplied by zero, so that NaN or infinity there stays
harmless in the value and in the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Count, mean and population variance of some numbers; what ranks exchange to whiten together."""

    count: Tensor  # type: ignore[assignment]  # [], how many entries counted
    mean: Tensor  # []
    var: Tensor  # [], ddof 0


def is_eos(response_ids: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """True at tokens that end a response, bool of the shape of ``response_ids``.

    >>> is_eos(torch.tensor([[5, 2]]), [2])
    tensor([[False,  True]])
    """
    ends = torch.tensor(list(eos_token_ids), dtype=response_ids.dtype, device=response_ids.device)
    return torch.isin(response_ids, ends)


def response_mask(response_ids: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """Tokens up to and including the first end-of-sequence token.

    The end token is an action of the policy, so it counts. The pad id is never looked at, so pad == eos is fine.

    Args:
        response_ids: sampled tokens, long ``[B, T]``, padded on the right with anything.
        eos_token_ids: ids that end a response; with none every token counts.

    Returns:
        bool ``[B, T]``.

    >>> response_mask(torch.tensor([[5, 2, 2], [5, 6, 7]]), [2])
    tensor([[ True,  True, False],
            [ True,  True,  True]])
    """
    ends = is_eos(response_ids, eos_token_ids).long()
    return ends.cumsum(1) - ends == 0


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` ``[N]`` at the N true entries of ``mask``, row by row, and 0 elsewhere; of the shape of ``mask``.

    >>> spread(torch.tensor([1.0, 2.0]), torch.tensor([[False, True], [True, False]]))
    tensor([[0., 1.],
            [2., 0.]])
    """
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of the entries of ``x`` where ``mask`` is True, ``[]``; both of one shape.

    >>> masked_sum(torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([True, True, False]))
    tensor(3.)
    """
    return torch.where(mask, x, 0).sum()


def divide_by_count(total: Tensor, denominator: float | Tensor) -> Tensor:
    """``total / denominator``, and ``total`` itself (an empty sum) where the denominator is 0.

    >>> divide_by_count(torch.tensor(0.0), 0.0), divide_by_count(torch.tensor(3.0), 2.0)
    (tensor(0.), tensor(1.5000))
    """
    if isinstance(denominator, Tensor):
        return total / torch.where(denominator == 0, 1, denominator)
    return total / (denominator or 1.0)


def masked_mean(x: Tensor, mask: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Mean of ``x`` over the entries that count; 0 when none does.

    Args:
        x: numbers of any shape.
        mask: bool of the same shape.
        denominator: divide by this instead of the entries counted here. With the count of the whole (global) batch, the
            results of its micro-batches add up to the mean of the whole batch.

    >>> masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    return divide_by_count(masked_sum(x, mask), mask.sum() if denominator is None else denominator)


def masked_moments(x: Tensor, mask: Tensor) -> Moments:
    """Count, mean and population variance of the entries that count.

    >>> masked_moments(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    Moments(count=tensor(2.), mean=tensor(2.), var=tensor(1.))
    """
    mean = masked_mean(x, mask)
    return Moments(mask.sum().to(x.dtype), mean, masked_mean((torch.where(mask, x, mean) - mean).square(), mask))


def merge_moments(count: Tensor, mean: Tensor, var: Tensor) -> Moments:
    """Moments of a whole from those of its ``R`` parts, for example one part per rank; all arguments ``[R]``.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> merge_moments(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0]), torch.zeros(2))
    Moments(count=tensor(2.), mean=tensor(2.), var=tensor(1.))
    """
    total = count.sum()
    merged = divide_by_count((count * mean).sum(), total)
    return Moments(total, merged, divide_by_count((count * (var + (mean - merged).square())).sum(), total))


def whiten_with(x: Tensor, mask: Tensor, mean: Tensor, var: Tensor, *, eps: float = 1e-8) -> Tensor:
    """``(x - mean) / sqrt(var + eps)`` with moments from elsewhere (all ranks, say); 0 where the mask is False.

    The variance divides by n (OpenAI's convention), not by n - 1 (TRL, verl).

    Args:
        x: numbers of any shape.
        mask: bool of the same shape.
        mean: ``[]``.
        var: ``[]``.
        eps: added to the variance, inside the root.

    Source: openai/lm-human-preferences, ``utils/core.py::whiten``.

    >>> whiten_with(torch.tensor([1.0, 3.0]), torch.tensor([True, False]), torch.tensor(2.0), torch.tensor(1.0))
    tensor([-1.,  0.])
    """
    return torch.where(mask, (torch.where(mask, x, mean) - mean) * torch.rsqrt(var + eps), 0)
