"""Four ways to turn a number per token into one number per batch.

Every function takes ``x`` float ``[B, T]`` and ``mask`` bool ``[B, T]`` and returns ``[]``. ``denominator`` is the
count of the *whole* batch over all its micro-batches: given it, the micro-batches' results add up to the value of the
whole batch. Without it the count of this tensor is used. Anything empty gives 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.masking import divide_by_count, masked_mean, masked_sum


def token_mean(x: Tensor, mask: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Mean over tokens, so that long sequences weigh more: ``sum x m / sum m``; the denominator counts tokens.

    >>> token_mean(torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[True, True], [True, False]]))
    tensor(2.)
    """
    return masked_mean(x, mask, denominator)


def seq_mean_token_mean(x: Tensor, mask: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Mean over non-empty sequences of the mean over their tokens; the denominator counts non-empty sequences.

    >>> seq_mean_token_mean(torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[True, True], [True, False]]))
    tensor(2.5000)
    """
    means = torch.where(mask, x, 0).sum(1) / mask.sum(1).clamp(min=1)
    return masked_mean(means, mask.any(1), denominator)


def seq_mean_token_sum(x: Tensor, mask: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Mean over non-empty sequences of the sum over their tokens; the denominator counts non-empty sequences.

    >>> seq_mean_token_sum(torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[True, True], [True, False]]))
    tensor(3.)
    """
    return masked_mean(torch.where(mask, x, 0).sum(1), mask.any(1), denominator)


def token_sum_norm(x: Tensor, mask: Tensor, norm: float, denominator: float | Tensor | None = None) -> Tensor:
    """``sum x m / (B norm)``; the denominator counts sequences, empty ones too.

    ``norm`` is a constant, usually the longest response allowed: no length enters the weight of a token.
    Source: Liu et al. 2025 (Dr. GRPO), arXiv:2503.20783.

    >>> token_sum_norm(torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[True, True], [True, False]]), 3)
    tensor(1.)
    """
    return divide_by_count(masked_sum(x, mask) / norm, x.shape[0] if denominator is None else denominator)


class Aggregation(NamedTuple):
    """An aggregate and how to count what it divides by, so that micro-batches and ranks can share one count."""

    aggregate: Callable[..., Tensor]  # f(x, mask, denominator=) -> []
    count: Callable[[Tensor], Tensor]  # type: ignore[assignment]  # bool mask [B, T] of a part -> its share of the denominator []


def aggregation(name: str, norm: float) -> Aggregation:
    """The aggregate called ``name``; ``norm`` is the constant of `token_sum_norm` and unused by the others.

    >>> aggregation("seq_mean_token_mean", 1).count(torch.tensor([[True, True], [False, False]]))
    tensor(1)

    Raises:
        ConfigError: there is no such aggregate; the message lists them.
    """
    known = {
        "token_mean": Aggregation(token_mean, lambda mask: mask.sum()),
        "seq_mean_token_mean": Aggregation(seq_mean_token_mean, _sequences),
        "seq_mean_token_sum": Aggregation(seq_mean_token_sum, _sequences),
        "token_sum_norm": Aggregation(
            partial(token_sum_norm, norm=norm), lambda mask: mask.new_tensor(len(mask), dtype=torch.long)
        ),
    }
    if name not in known:
        raise ConfigError(f"aggregation={name!r}: choose one of {', '.join(known)}")
    return known[name]


def _sequences(mask: Tensor) -> Tensor:
    return mask.any(1).sum()
