"""How the score that matters rises and falls while a policy is optimised against a proxy of it.

Distance is ``d = sqrt(KL(policy || start))`` with the KL in nats per response. ``gold`` is the gain of the true score
over the start, so that every curve passes through 0 at ``d = 0``. Best-of-n and reinforcement learning follow two
forms, each with two coefficients: ``alpha`` is what the proxy is worth at first, ``beta`` how fast it is spoilt.

Source: Gao, Schulman, Hilton 2022, arXiv:2210.10760, section 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Peak(NamedTuple):
    """Where the true score is highest; both infinite if it never falls (beta <= 0)."""

    distance: float  # sqrt of nats per response
    gold: float


class CurveFit(NamedTuple):
    """Coefficients by least squares, and how much of the variance of gold they explain."""

    alpha: Tensor  # []
    beta: Tensor  # []
    r2: Tensor  # [], 1 is perfect, below 0 is worse than a constant; 0 if gold does not vary


def best_of_n_curve(distance: Tensor, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
    """``d (alpha - beta d)``, the shape of ``distance`` kept.

    >>> best_of_n_curve(torch.tensor([0.0, 1.0, 2.0]), 2.0, 0.5)
    tensor([0.0000, 1.5000, 2.0000])
    """
    return distance * (alpha - beta * distance)


def rl_curve(distance: Tensor, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
    """``d (alpha - beta log d)``, 0 at 0, the shape of ``distance`` kept.

    >>> rl_curve(torch.tensor([0.0, 1.0]), 2.0, 0.5)
    tensor([0., 2.])
    """
    return alpha * distance - beta * torch.xlogy(distance, distance)


def best_of_n_peak(alpha: float, beta: float) -> Peak:
    """The top of `best_of_n_curve`: ``alpha^2 / (4 beta)`` at ``d = alpha / (2 beta)``, and not below d = 0.

    >>> best_of_n_peak(2.0, 0.5)
    Peak(distance=2.0, gold=2.0)
    """
    if beta <= 0:
        return Peak(math.inf, math.inf)
    distance = max(alpha, 0.0) / (2 * beta)
    return Peak(distance, distance * max(alpha, 0.0) / 2)


def rl_peak(alpha: float, beta: float) -> Peak:
    """The top of `rl_curve`: ``beta d`` at ``d = exp(alpha / beta - 1)``.

    >>> rl_peak(2.0, 2.0)
    Peak(distance=1.0, gold=2.0)
    """
    if beta <= 0:
        return Peak(math.inf, math.inf)
    distance = torch.tensor(alpha / beta - 1, dtype=torch.float64).exp().item()  # inf where math.exp would raise
    return Peak(distance, beta * distance)


def _fit(distance: Tensor, gold: Tensor, spoilt: Tensor) -> CurveFit:
    """``gold ~ alpha distance - beta spoilt`` by the normal equations, in float64."""
    if len(distance[distance > 0].unique()) < 2:
        raise ValueError("a curve with two coefficients needs points at two different distances above 0")
    first, second, target = distance, -spoilt, gold.double()
    a, b, c = first.dot(first), first.dot(second), second.dot(second)
    x, y = first.dot(target), second.dot(target)
    determinant = a * c - b * b
    alpha, beta = (c * x - b * y) / determinant, (a * y - b * x) / determinant
    left = (target - alpha * first - beta * second).square().sum()
    total = (target - target.mean()).square().sum()
    r2 = torch.where(total > 0, 1 - left / torch.where(total > 0, total, 1), 0)
    return CurveFit(*(number.to(gold.dtype) for number in (alpha, beta, r2)))


def fit_best_of_n_curve(distance: Tensor, gold: Tensor) -> CurveFit:
    """The coefficients of `best_of_n_curve` that are nearest to measured points.

    Args:
        distance: sqrt of nats per response, ``[N]``, at least 0 (a measured KL below 0 is 0).
        gold: gain over the start, ``[N]``.

    Raises:
        ValueError: fewer than two different distances above 0.

    >>> fit = fit_best_of_n_curve(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0]))
    >>> fit.alpha, fit.beta
    (tensor(2.), tensor(0.5000))
    """
    d = distance.double()
    return _fit(d, gold, d.square())


def fit_rl_curve(distance: Tensor, gold: Tensor) -> CurveFit:
    """The coefficients of `rl_curve` that are nearest to measured points; arguments as `fit_best_of_n_curve`.

    Raises:
        ValueError: fewer than two different distances above 0.

    >>> fit = fit_rl_curve(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 3.0]))
    >>> fit.alpha, fit.beta
    (tensor(1.5000), tensor(0.))
    """
    d = distance.double()
    return _fit(d, gold, torch.xlogy(d, d))
