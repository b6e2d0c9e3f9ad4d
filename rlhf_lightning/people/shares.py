"""Shares of cases with their standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Share:
    """A share of cases that come in clusters, for example pairs of answers of one item."""

    mean: float | None  # None where there is no case
    stderr: float | None  # None with fewer than two clusters
    cases: float

    def __str__(self) -> str:
        """In percent.

        >>> str(share_of([(3.0, 4.0), (1.0, 4.0)]))
        '50 % (± 25)'
        """
        if self.mean is None:
            return "none"
        error = "" if self.stderr is None else f" (± {100 * self.stderr:.0f})"
        return f"{100 * self.mean:.0f} %{error}"


class Interval(NamedTuple):
    """A share and the ends of its interval, all between 0 and 1."""

    share: float
    low: float
    high: float


def share_of(clusters: Sequence[tuple[float, float]]) -> Share:
    """The mean over all cases, with a standard error that takes whole clusters as independent.

        mean = sum x / sum n,  stderr^2 = m / (m - 1) * sum (x - mean n)^2 / (sum n)^2

    Args:
        clusters: credit x and number of cases n of each of m clusters; those without a case do not count.

    Source: the ratio estimator of a cluster sample, Cochran 1977, Sampling Techniques, without the correction for a
    finite population.
    """
    counted = [(credit, cases) for credit, cases in clusters if cases]
    total, number = sum(cases for _, cases in counted), len(counted)
    if not counted:
        return Share(None, None, 0.0)
    mean = sum(credit for credit, _ in counted) / total
    if number < 2:
        return Share(mean, None, total)
    squares = sum((credit - mean * cases) ** 2 for credit, cases in counted)
    return Share(mean, (number / (number - 1) * squares) ** 0.5 / total, total)
