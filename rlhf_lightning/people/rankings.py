"""Two rankings of the same answers side by side: what they order alike, and their rank correlation."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np

Ranks = tuple[int, ...]
_cached = lru_cache(maxsize=1 << 14)  # many people say the same few rankings


@_cached
def signs(ranks: Ranks) -> np.ndarray:
    """1 where the answer of the row is better than that of the column, -1 where it is worse, 0 for a tie; [K, K].

    >>> signs((1, 2, 2)).tolist()
    [[0, 1, 1], [-1, 0, 0], [-1, 0, 0]]
    """
    column = np.asarray(ranks)
    found = np.sign(column[None, :] - column[:, None])
    found.flags.writeable = False
    return found


@_cached
def pair_agreement(ranks: Ranks, others: Ranks) -> tuple[float, int]:
    """How many pairs of answers two rankings order alike, and of how many.

    A pair counts 1 where both say the same, be it a tie, 1/2 where one of them ties, and 0 where they say the opposite.

    >>> pair_agreement((1, 2, 3), (1, 3, 2))
    (2.0, 3)
    """
    pairs, apart = len(ranks) * (len(ranks) - 1) // 2, np.abs(signs(ranks) - signs(others)).sum() / 2
    return float(pairs - apart / 2), pairs


@_cached
def said_alike(first: Ranks, second: Ranks) -> tuple[float, float]:
    """Of the pairs of answers that the first ranking orders, how many the second orders alike, and of how many.

    A tie of the second counts 1/2.

    >>> said_alike((1, 2, 3), (1, 2, 2))
    (2.5, 3.0)
    """
    above = signs(first) > 0
    return float(((1 + signs(second)[above]) / 2).sum()), float(above.sum())


@_cached
def places(ranks: Ranks) -> tuple[Fraction, ...]:
    """The place of each answer between the first (0) and the last (1), the mean of those that tied ones share.

    >>> [float(place) for place in places((1, 2, 2))]
    [0.0, 0.75, 0.75]
    """
    better = (np.asarray(ranks)[None, :] < np.asarray(ranks)[:, None]).sum(1)
    tied = (np.asarray(ranks)[None, :] == np.asarray(ranks)[:, None]).sum(1) - 1
    return tuple(Fraction(int(2 * b + t), 2 * (len(ranks) - 1)) for b, t in zip(better, tied, strict=True))


@_cached
def kendall_tau_b(ranks: Ranks, others: Ranks) -> float | None:
    """Kendall's tau-b of two rankings of the same K answers; None where one of them ties all.

    Source: Kendall 1945, The Treatment of Ties in Ranking Problems.

    >>> round(kendall_tau_b((1, 2, 3), (1, 2, 2)), 4)
    0.8165
    """
    first, second = signs(ranks), signs(others)
    size = float(np.abs(first).sum()) * float(np.abs(second).sum())
    return float((first * second).sum()) / size**0.5 if size else None
