"""What to look at before believing a reward model or a policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Calibration(NamedTuple):
    """How far the stated probabilities are from the observed frequencies."""

    ece: Tensor  # [], expected calibration error, 0 is best
    brier: Tensor  # [], mean squared error of the probability
    nll: Tensor  # [], nats per pair
    accuracy: Tensor  # [], a tie is half correct
    bins: Tensor  # [n, 4], one row (index, pairs, accuracy, mean confidence) for each bin that is not empty


class WinRate(NamedTuple):
    """A share and its confidence interval."""

    win_rate: float  # a tie is half a win
    low: float
    high: float


def calibration(chosen: Tensor, rejected: Tensor, *, n_bins: int = 10) -> Calibration:
    """Calibration of the preference probability ``p = sigmoid(chosen - rejected)``.

    The confidence of a pair is ``max(p, 1 - p)``; ``ece = sum_bins n/N |accuracy - confidence|``; Brier is ``mean (1
    - p)^2``.

    Args:
        chosen: scores of the preferred answers, ``[N]``.
        rejected: scores of the others, ``[N]``.
        n_bins: bins of equal width on [0.5, 1], the last one closed.

    Source: Guo et al. 2017, arXiv:1706.04599.

    >>> calibration(torch.tensor([3.0]).log(), torch.tensor([1.0]).log()).ece  # right with confidence 0.75
    tensor(0.2500)
    """
    gap = chosen - rejected
    p = gap.sigmoid()
    correct = torch.where(gap == 0, 0.5, (gap > 0).to(p.dtype))
    confidence = gap.abs().sigmoid()
    index = ((confidence - 0.5) * 2 * n_bins).long().clamp(max=n_bins - 1)
    sums = p.new_zeros(n_bins, 3).index_add(0, index, torch.stack([torch.ones_like(p), correct, confidence], dim=1))
    total = max(len(gap), 1)
    ece = (sums[:, 1] - sums[:, 2]).abs().sum() / total
    return Calibration(
        ece=ece,
        brier=(1 - p).square().sum() / total,
        nll=softplus(-gap).sum() / total,
        accuracy=correct.sum() / total,
        bins=_means(sums),
    )


def fit_temperature(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The ``T > 0`` for which ``sigmoid((chosen - rejected) / T)`` has the lowest mean NLL, ``[]``.

    Divide the scores by it to calibrate them: above 1 the model was too sure. The NLL is convex in ``1 / T``, so the
    zero of its slope is found by halving an interval of ``log T``, to about nine digits. The interval reaches from a
    thousandth to a thousand times the mean ``|chosen - rejected|``: its lower end is the answer when every pair is
    right, its upper end when scores say nothing. 1 when all pairs are ties.

    Args:
        chosen: scores of the preferred answers, ``[N]``, held out from training.
        rejected: scores of the others, ``[N]``.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.

    >>> gaps = torch.tensor([2.0, 2.0, 2.0, -2.0])  # three of four are right, which is worth log 3
    >>> 2 / fit_temperature(gaps, torch.zeros(4))
    tensor(1.0986)
    """
    gap = (chosen - rejected).double()
    size = gap.abs().sum() / max(len(gap), 1)
    if size == 0:
        return torch.ones_like(size).to(chosen.dtype)
    gap = gap / size
    low, high = gap.new_tensor(1e-3).log(), gap.new_tensor(1e3).log()
    for _ in range(40):
        middle = (low + high) / 2
        too_sure = (gap * (-gap / middle.exp()).sigmoid()).sum() < 0  # a higher temperature lowers the NLL
        low, high = torch.where(too_sure, middle, low), torch.where(too_sure, high, middle)
    return (size * ((low + high) / 2).exp()).to(chosen.dtype)


def cross_calibration(chosen: Tensor, rejected: Tensor, half: Tensor, *, n_bins: int = 10) -> Calibration:
    """`calibration` of pairs after each half was divided by the temperature fitted on the other half.

    This is what `fit_temperature` is worth on pairs it has not seen. Put all pairs of a prompt in one half.

    Args:
        chosen: scores of the preferred answers, ``[N]``.
        rejected: scores of the others, ``[N]``.
        half: which half a pair belongs to, bool ``[N]``.
        n_bins: see `calibration`.

    >>> gaps, half = torch.tensor([2.0, 2.0, 2.0, -2.0]).repeat(2), torch.arange(8) < 4
    >>> cross_calibration(gaps, torch.zeros(8), half).ece.abs() < 1e-6  # both halves say 3 of 4
    tensor(True)
    """
    of_one, of_other = fit_temperature(chosen[half], rejected[half]), fit_temperature(chosen[~half], rejected[~half])
    temperature = torch.where(half, of_other, of_one)
    return calibration(chosen / temperature, rejected / temperature, n_bins=n_bins)


def accuracy_by_margin(chosen: Tensor, rejected: Tensor, *, n_bins: int = 4) -> Tensor:
    """Share of pairs with chosen strictly above rejected, from the smallest to the largest ``|chosen - rejected|``.

    Args:
        chosen: scores of the preferred answers, ``[N]``.
        rejected: scores of the others, ``[N]``.
        n_bins: bins of equally many pairs; equal margins share a bin.

    Returns:
        ``[n, 4]``, one row (index, pairs, accuracy, mean ``|chosen - rejected|``) for each bin that is not empty.

    >>> accuracy_by_margin(torch.tensor([1.0, 0.0, 8.0, 9.0]), torch.tensor([0.0, 1.0, 0.0, 0.0]), n_bins=2)
    tensor([[0.0000, 2.0000, 0.5000, 1.0000],
            [1.0000, 2.0000, 1.0000, 8.5000]])
    """
    gap = chosen - rejected
    index = ((average_ranks(gap.abs()) - 0.5) * n_bins / max(len(gap), 1)).long().clamp(max=n_bins - 1)
    parts = torch.stack([torch.ones_like(gap), (gap > 0).to(gap.dtype), gap.abs()], dim=1)
    sums = gap.new_zeros(n_bins, 3).index_add(0, index, parts)
    return _means(sums)


def _means(sums: Tensor) -> Tensor:
    """Rows (index, count, means) of the bins that are not empty, from their counts and sums ``[n_bins, 3]``."""
    used = sums[:, 0].nonzero()
    full = sums[used[:, 0]]
    return torch.cat([used.to(sums.dtype), full[:, :1], full[:, 1:] / full[:, :1]], dim=1)


def average_ranks(x: Tensor) -> Tensor:
    """Rank of each entry of ``[N]`` from 1 upwards, equal entries sharing their mean rank.

    >>> average_ranks(torch.tensor([5.0, 1.0, 5.0]))
    tensor([2.5000, 1.0000, 2.5000])
    """
    _, place, count = x.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2)[place].to(torch.promote_types(x.dtype, torch.float32))


def wilson_interval(wins: int, ties: int, losses: int, *, z: float = 1.959963984540054) -> WinRate:
    """Win rate with ties as half a win and its Wilson score interval (95 % by default).

    Nothing compared gives a rate of 0.5 in [0, 1].

    Source: Wilson 1927.

    >>> wilson_interval(1, 0, 1).win_rate
    0.5
    """
    n = wins + ties + losses
    return _wilson((wins + ties / 2) / n, n, z) if n else WinRate(0.5, 0.0, 1.0)


def _wilson(rate: float, n: float, z: float = 1.959963984540054) -> WinRate:
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return WinRate(rate, max(0.0, center - half), min(1.0, center + half))


def clustered_interval(right: Tensor, cluster: Tensor, estimate: float | None = None) -> WinRate:
    """Mean of ``right [N]``, bool or 0 to 1, and its Wilson interval where those of one ``cluster [N]`` go together.

    Wilson's interval for the number of independent observations with the same variance as the share has over clusters;
    never fewer than there are clusters, nor more than there are observations. It lies around another ``estimate`` of
    the share where one is given.

    Source: Korn and Graubard 1998, with Wilson's interval in place of Clopper and Pearson's.

    >>> one, four = (clustered_interval(torch.arange(8) % 4 > 0, torch.arange(8) // size) for size in (1, 4))
    >>> one.win_rate, one == four
    (0.75, False)
    """
    _, number = cluster.unique(return_inverse=True)
    if not len(right):
        return wilson_interval(0, 0, 0)
    hits = right.double()
    off = torch.zeros(int(number.max()) + 1, dtype=hits.dtype).index_add(0, number.cpu(), (hits - hits.mean()).cpu())
    groups, share = len(off), hits.mean().item()
    variance = off.square().sum().item() / len(hits) ** 2 * groups / max(groups - 1, 1)
    count = min(max(share * (1 - share) / variance if variance > 0 else 0, groups), len(hits))
    return _wilson(share if estimate is None else estimate, count)


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Share of different n-grams among all n-grams of all responses together; 0 if there is none.

    Source: Li et al. 2016, arXiv:1510.03055.

    >>> distinct_n([[1, 1], [1, 2]], 1)
    0.5
    """
    grams = [gram for response in responses for gram in _ngrams(response, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_n(response: Sequence[int], n: int) -> float:
    """Share of n-grams of one response that repeat an earlier one; 0 if it is shorter than ``n``.

    Source: Welleck et al. 2019, arXiv:1908.04319 (``seq-rep-n``).

    >>> repetition_n([1, 2, 1, 2, 1], 2)
    0.5
    """
    grams = _ngrams(response, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
