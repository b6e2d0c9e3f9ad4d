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


class LengthBias(NamedTuple):
    """How much of a score is length; all 0 when scores or lengths do not vary."""

    pearson: Tensor  # []
    spearman: Tensor  # []
    slope_per_token: Tensor  # [], score per token, least squares
    residuals: Tensor  # [N], scores minus slope * (length - mean length): the mean is kept


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
    used = sums[:, 0].nonzero()
    full = sums[used[:, 0]]
    bins = torch.cat([used.to(p.dtype), full[:, :1], full[:, 1:] / full[:, :1]], dim=1)
    return Calibration(
        ece=ece,
        brier=(1 - p).square().sum() / total,
        nll=softplus(-gap).sum() / total,
        accuracy=correct.sum() / total,
        bins=bins,
    )


def average_ranks(x: Tensor) -> Tensor:
    """Rank of each entry of ``[N]`` from 1 upwards, equal entries sharing their mean rank.

    >>> average_ranks(torch.tensor([5.0, 1.0, 5.0]))
    tensor([2.5000, 1.0000, 2.5000])
    """
    below = (x.unsqueeze(0) < x.unsqueeze(1)).sum(1)
    equal = (x.unsqueeze(0) == x.unsqueeze(1)).sum(1)
    return below + (equal + 1).to(x.dtype) / 2


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Correlation of two ``[N]`` tensors, ``[]``; 0 when one of them does not vary.

    >>> pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
    tensor(1.)
    """
    a, b = x - x.mean(), y - y.mean()
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return torch.where(scale > 0, (a * b).sum() / torch.where(scale > 0, scale, 1), 0)


def length_bias(scores: Tensor, lengths: Tensor) -> LengthBias:
    """How scores ``[N]`` go with response lengths ``[N]`` in tokens.

    >>> length_bias(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10, 20, 30])).slope_per_token
    tensor(0.1000)
    """
    tokens = lengths.to(scores.dtype)
    centered = tokens - tokens.mean()
    spread = centered.square().sum()
    slope = torch.where(spread > 0, (centered * scores).sum() / torch.where(spread > 0, spread, 1), 0)
    ranked = pearson(average_ranks(scores), average_ranks(tokens))
    return LengthBias(pearson(scores, tokens), ranked, slope, scores - slope * centered)


def wilson_interval(wins: int, ties: int, losses: int, *, z: float = 1.959963984540054) -> WinRate:
    """Win rate with ties as half a win and its Wilson score interval (95 % by default).

    Nothing compared gives a rate of 0.5 in [0, 1].

    Source: Wilson 1927.

    >>> wilson_interval(1, 0, 1).win_rate
    0.5
    """
    n = wins + ties + losses
    if n == 0:
        return WinRate(0.5, 0.0, 1.0)
    rate = (wins + ties / 2) / n
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return WinRate(rate, max(0.0, center - half), min(1.0, center + half))


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


def best_of_n_kl_bound(n: int) -> float:
    """Upper bound ``log n - (n - 1) / n`` on the KL of best-of-n to its base policy, nats; equality without ties.

    Sources: Stiennon et al. 2020, arXiv:2009.01325; as a bound: Beirami et al. 2024, arXiv:2401.01879.

    >>> best_of_n_kl_bound(1)
    0.0
    """
    return math.log(n) - (n - 1) / n


class BestOfN(NamedTuple):
    """What picking the best of n by a proxy is worth, estimated from ``N >= n`` samples without drawing subsets."""

    proxy: Tensor  # [], expected proxy score of the pick
    gold: Tensor  # [], expected gold score of the pick
    weights: Tensor  # [N], chance that the sample is the pick, in ascending order of the proxy


def best_of_n(proxy: Tensor, gold: Tensor, n: int) -> BestOfN:
    """Unbiased estimate of best-of-n over all subsets of size n: weight ``C(i - 1, n - 1) / C(N, n)`` for rank i.

    Args:
        proxy: scores that pick, ``[N]``.
        gold: scores that matter, ``[N]``.
        n: samples per prompt to pick from, at most ``N``.

    Source: Nakano et al. 2021, arXiv:2112.09332, appendix I.

    >>> best_of_n(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0, 3.0, 0.0]), n=2).weights
    tensor([0.0000, 0.3333, 0.6667])
    """
    size = len(proxy)
    if not 1 <= n <= size:
        raise ValueError(f"best-of-{n} needs at least {max(n, 1)} samples and n >= 1; there are {size}")
    shares = [math.comb(i, n - 1) / math.comb(size, n) for i in range(size)]
    weights = torch.tensor(shares, dtype=proxy.dtype, device=proxy.device)
    order = proxy.argsort()
    return BestOfN((weights * proxy[order]).sum(), (weights * gold[order]).sum(), weights)
