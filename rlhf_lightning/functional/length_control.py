"""Win rate at equal length: what is left of it where longer answers are liked better."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional.diagnostics import WinRate, clustered_interval

_STEPS, _FLAT = 50, 1e-12  # Newton steps at most; a gradient per pair that counts as none
_FAR = 30.0  # a coefficient that grows without end: lengths alone tell wins from losses


def length_controlled_win_rate(
    outcomes: Tensor, length_difference: Tensor, cluster: Tensor, *, resamples: int = 200, seed: int = 0
) -> WinRate | None:
    """Win rate that a logistic regression on the length difference predicts for answers of equal length.

    ``P(win) = sigmoid(a + b tanh(d / sd(d)))`` is fitted to all pairs by maximum likelihood, and ``sigmoid(a)`` is the
    rate. The instruction difficulties of AlpacaEval and its penalty are left out. The interval is that of a bootstrap
    over prompts and at least Wilson's, see `clustered_interval`: a bootstrap of few prompts is too narrow, and of one
    prompt or of ties alone it has no width.

    Args:
        outcomes: ``[N]``, 1 for a win, 0.5 for a tie, 0 for a loss, or the probability of a win.
        length_difference: ``[N]`` tokens or characters of our answer less those of the other.
        cluster: ``[N]`` number of the prompt; pairs of one prompt go together in the interval.
        resamples: draws of the 95 % percentile bootstrap over prompts.
        seed: of the bootstrap.

    Returns:
        The rate and its interval; None where there is no estimate, because lengths alone tell wins from losses.

    Source: Dubois et al. 2024, arXiv:2404.04475, equation 2 without its term for the instruction.

    >>> outcomes, longer = torch.tensor([1.0, 1, 1, 0, 1, 0, 0, 0]), torch.tensor([9.0, 9, 9, 9, -9, -9, -9, -9])
    >>> rate = length_controlled_win_rate(outcomes, longer, torch.arange(8))
    >>> round(rate.win_rate, 6)
    0.5
    """
    y, difference = outcomes.double().cpu(), length_difference.double().cpu()
    if bool((y == y[0]).all()) and y[0] in (0, 1):
        return clustered_interval(y, cluster)
    spread = difference.std(correction=0)
    x = torch.tanh(difference / spread) if spread > 0 else torch.zeros_like(difference)
    _, number = cluster.cpu().unique(return_inverse=True)
    prompts = int(number.max()) + 1
    drawn = torch.randint(prompts, (resamples, prompts), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(resamples, prompts, dtype=y.dtype).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=y.dtype)
    )
    rates = _rates(torch.cat([torch.ones(1, len(y), dtype=y.dtype), counts[:, number]]), y, x)
    if rates[0].isnan():
        return None
    found = rates[1:][~rates[1:].isnan()]
    low, high = (found.quantile(q).item() for q in (0.025, 0.975)) if len(found) else (0.0, 1.0)
    least = clustered_interval(y, cluster, rates[0].item())
    return WinRate(least.win_rate, min(low, least.low), max(high, least.high))


def _rates(weight: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """``sigmoid(a)`` of each of R regressions with ``weight [R, N]``, by Newton's method; NaN where it has no end."""
    total = weight.sum(1)
    features = torch.stack([torch.ones_like(x), x])
    beta = torch.zeros(len(weight), 2, dtype=y.dtype)
    flat = torch.diag(torch.tensor([0.0, 0.0 if x.any() else 1.0], dtype=y.dtype))  # all lengths are equal: b is 0
    for _ in range(_STEPS):
        p = torch.sigmoid(beta @ features)
        gradient = (weight * (y - p)) @ features.T / total[:, None]
        curvature = (
            torch.einsum("rn,in,jn->rij", weight * p * (1 - p), features, features) / total[:, None, None] + flat
        )
        if bool((gradient.abs().amax(1) <= _FLAT).all()):
            break
        beta = beta + (torch.linalg.pinv(curvature) @ gradient[:, :, None])[:, :, 0].clamp(-2, 2)
    lost = (gradient.abs().amax(1) > 1e-9) | (beta.abs().amax(1) > _FAR)
    return torch.where(lost, torch.nan, torch.sigmoid(beta[:, 0]))
