"""Picking the best of n samples: the cheapest optimisation against a score, and the yardstick for any other."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class BestOfN(NamedTuple):
    """What picking the best of n by a proxy is worth, estimated from ``N >= n`` samples without drawing subsets."""

    proxy: Tensor  # [], expected proxy score of the pick
    gold: Tensor  # [], expected gold score of the pick
    weights: Tensor  # [N], chance that the sample is the pick, in ascending order of the proxy


class BestOfNLaw(NamedTuple):
    """The exact distribution of the pick on a finite support."""

    probabilities: Tensor  # [V]
    kl: Tensor  # [], nats, KL(best of n || base)
    expected_score: Tensor  # []


def best_of_n_kl_bound(n: int) -> float:
    """Upper bound ``log n - (n - 1) / n`` on the KL of best-of-n to its base policy, nats; equality without ties.

    Sources: Stiennon et al. 2020, arXiv:2009.01325; as a bound: Beirami et al. 2024, arXiv:2401.01879.

    Raises:
        ValueError: n is below 1.

    >>> best_of_n_kl_bound(1)
    0.0
    """
    _require_samples(n)
    return math.log(n) - (n - 1) / n


def _require_samples(n: int) -> None:
    if n < 1:
        raise ValueError(f"best-of-{n}: n must be at least 1")


def best_of_n(proxy: Tensor, gold: Tensor, n: int) -> BestOfN:
    """Unbiased estimate of best-of-n over all subsets of size n: weight ``C(i - 1, n - 1) / C(N, n)`` for rank i.

    Samples with equal proxy scores share their weights, so that their order does not matter.

    Args:
        proxy: scores that pick, ``[N]``.
        gold: scores that matter, ``[N]``.
        n: samples per prompt to pick from, at most ``N``.

    Source: Nakano et al. 2021, arXiv:2112.09332, appendix I.

    Raises:
        ValueError: n is below 1 or above N.

    >>> best_of_n(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0, 3.0, 0.0]), n=2).weights
    tensor([0.0000, 0.3333, 0.6667])
    """
    size = len(proxy)
    if not 1 <= n <= size:
        raise ValueError(f"best-of-{n} needs at least {max(n, 1)} samples and n >= 1; there are {size}")
    shares = [math.comb(i, n - 1) / math.comb(size, n) for i in range(size)]
    by_rank = torch.tensor(shares, dtype=torch.float64, device=proxy.device)
    order = proxy.argsort()
    _, ties, members = proxy[order].unique(return_inverse=True, return_counts=True)  # [N], [different scores]
    weights = (by_rank.new_zeros(len(members)).index_add(0, ties, by_rank) / members)[ties].to(proxy.dtype)
    return BestOfN((weights * proxy[order]).sum(), (weights.to(gold.dtype) * gold[order]).sum(), weights)


def best_of_n_law(probabilities: Tensor, scores: Tensor, n: int) -> BestOfNLaw:
    """The distribution of the best of n independent samples, on a finite support.

        pi(x) = p(x) / p(score = s_x) * (p(score <= s_x)^n - p(score < s_x)^n)

    Samples that share the best score are picked with equal chance, so answers of equal score keep their proportions.
    With ties, or on a small support, the KL is below `best_of_n_kl_bound`.

    Args:
        probabilities: of the base policy, ``[V]``; scaled to sum 1.
        scores: ``[V]``.
        n: samples to pick from.

    Source: Beirami et al. 2024, arXiv:2401.01879, lemma 1, with ties.

    Raises:
        ValueError: n is below 1.

    >>> best_of_n_law(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), n=2).probabilities
    tensor([0.2500, 0.7500])
    """
    _require_samples(n)
    p = probabilities / probabilities.sum()
    different, group = scores.unique(return_inverse=True)
    mass = p.new_zeros(len(different)).index_add(0, group, p)
    at_most = mass.cumsum(0)
    at_most = at_most / at_most[-1:]
    # F^n - (F - m)^n = F^n (1 - (1 - m / F)^n), without the difference of two numbers that are nearly equal
    below = (-mass / torch.where(at_most > 0, at_most, 1)).clamp(min=-1)
    log_gain = n * at_most.log() + (-torch.expm1(n * torch.log1p(below))).log() - mass.log()
    log_ratio = torch.where(mass > 0, log_gain, 0)[group]
    picked = p * log_ratio.exp()
    return BestOfNLaw(picked, (picked * log_ratio).sum(), (picked * scores).sum())
