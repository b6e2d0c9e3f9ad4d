"""Functions of scores alone: ensembles of scorers, and bounded forms that resist reward hacking."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def ensemble_mean(scores: Tensor) -> Tensor:
    """Mean over the members, ``[B]`` from ``[members, B]``.

    >>> ensemble_mean(torch.tensor([[1.0], [3.0]]))
    tensor([2.])
    """
    return scores.mean(0)


def worst_case(scores: Tensor) -> Tensor:
    """Lowest score of any member, ``[B]`` from ``[members, B]``.

    Source: Coste et al. 2023, arXiv:2310.02743.

    >>> worst_case(torch.tensor([[1.0], [3.0]]))
    tensor([1.])
    """
    return scores.amin(0)


def uncertainty_weighted(scores: Tensor, *, coef: float = 0.5, ddof: int = 0) -> Tensor:
    """``mean - coef * variance`` over the members, ``[B]`` from ``[members, B]``; one member alone has no variance.

    Source: Coste et al. 2023, arXiv:2310.02743; their published code uses ddof 0 in one place and 1 in another.

    >>> uncertainty_weighted(torch.tensor([[1.0], [3.0]]))
    tensor([1.5000])
    """
    mean = scores.mean(0)
    return mean - coef * (scores - mean).square().sum(0) / max(len(scores) - ddof, 1)


def preference_as_reward(scores: Tensor, ref_scores: Tensor, *, k: float = 1.0) -> Tensor:
    """``mean_m sigmoid(k (score - ref_m))``: the chance of beating reference answers to the same prompt, in (0, 1).

    Args:
        scores: ``[B]``.
        ref_scores: of ``M`` reference answers to each prompt, ``[B, M]``.
        k: steepness.

    Source: Fu et al. 2025 (PAR), arXiv:2502.18770.

    >>> preference_as_reward(torch.tensor([1.0]), torch.tensor([[1.0]]))
    tensor([0.5000])
    """
    return torch.sigmoid(k * (scores.unsqueeze(1) - ref_scores)).mean(1)


def log_sigmoid_centered(scores: Tensor, ref_scores: Tensor) -> Tensor:
    """``mean_m log sigmoid(score - ref_m)``, ``[B]``, below 0; arguments as `preference_as_reward`.

    Source: Wang et al. 2024, arXiv:2402.00742.

    >>> log_sigmoid_centered(torch.tensor([1.0]), torch.tensor([[1.0]]))  # -log 2
    tensor([-0.6931])
    """
    return logsigmoid(scores.unsqueeze(1) - ref_scores).mean(1)


def centered(scores: Tensor, ref_scores: Tensor) -> Tensor:
    """``score - mean_m ref_m``, ``[B]``; arguments as `preference_as_reward`.

    >>> centered(torch.tensor([1.0]), torch.tensor([[1.0, 3.0]]))
    tensor([-1.])
    """
    return scores - ref_scores.mean(1)
