"""Win rates and ratings from votes between two answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_lightning.errors import DataError
from rlhf_lightning.people.shares import Interval

NORMAL_95 = 1.959964  # standard errors of a 95 % interval
ELO = 400 / np.log(10)  # points of the usual scale per unit of log-odds
_STEPS, _CLOSE = 100, 1e-10  # Newton steps at most; the gradient per vote at which they end


@dataclass(frozen=True)
class Vote:
    """One person's word on two answers to a prompt."""

    first: str  # policy
    second: str
    share: float  # of the vote that the first gets: 1 it is better, 0 the second is, 1/2 a tie
    cluster: str = ""  # votes that may go together, those of one person for example; "": this one stands alone


@dataclass(frozen=True)
class Rating:
    """How strong a policy is. A difference of two ratings is the log-odds that the one wins."""

    policy: str
    rating: float  # log-odds against the anchor; `ELO` times it is on the scale of chess
    stderr: float  # of that difference; 0 for the anchor itself
    low: float  # ends of the 95 % interval
    high: float
    votes: int


def wilson(wins: float, votes: float, z: float = NORMAL_95) -> Interval:
    """Win rate with Wilson's score interval; ties count half a win.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    With ties the interval is wider than it needs to be, since they vary less than wins and losses.

    Args:
        wins: of ``votes``, not more than these.
        votes: n; without any the interval is from 0 to 1.
        z: standard errors to each side.

    Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.

    >>> [round(number, 3) for number in wilson(8, 10)]
    [0.8, 0.49, 0.943]
    """
    if votes <= 0:
        return Interval(0.5, 0.0, 1.0)
    share = wins / votes
    middle = share + z * z / (2 * votes)
    reach = z * (share * (1 - share) / votes + z * z / (4 * votes * votes)) ** 0.5
    scale = 1 + z * z / votes
    return Interval(share, max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale))


def win_rates(votes: Iterable[Vote]) -> dict[tuple[str, str], Interval]:
    """`wilson` of each two policies that met, by the first and the second in the order of their names."""
    counted: dict[tuple[str, str], list[float]] = defaultdict(list)
    for vote in votes:
        swapped = vote.second < vote.first
        pair = (vote.second, vote.first) if swapped else (vote.first, vote.second)
        counted[pair].append(1 - vote.share if swapped else vote.share)
    return {pair: wilson(sum(shares), len(shares)) for pair, shares in sorted(counted.items())}


def bradley_terry(votes: Sequence[Vote], anchor: str | None = None, prior: float = 0.0) -> list[Rating]:
    """Ratings by maximum likelihood, the strongest first. The order of the votes does not matter.

        P(first wins) = sigmoid(rating of the first - rating of the second); a tie is half a win and half a loss

    The standard errors are those of the sandwich, which hold where the model is only a likeness of what people do:
    with gradient g of a cluster of votes and Hessian H of the log-likelihood, H^+ (sum g g^T) H^+. With fewer than some
    thirty clusters they are too small, and 0 where all votes are ties: read `wilson` beside them. With a prior they are
    those of the posterior by Laplace's method, H^-1, which few votes leave wide.

    Args:
        votes: all that there are.
        anchor: the policy with rating 0; None puts the mean of all at 0.
        prior: so many tied votes of each policy against one of mean strength, which bounds the ratings.

    Raises:
        DataError: no vote; a policy has never won or never lost against the rest, be it through others, so that no
            rating is most likely; or an anchor without a vote.

    Source: Bradley and Terry 1952, Rank Analysis of Incomplete Block Designs; existence: Ford 1957, Solution of a
    Ranking Problem from Binary Comparisons; sandwich: White 1982, Maximum Likelihood Estimation of Misspecified Models.

    >>> found = bradley_terry([Vote("ppo", "sft", 1.0)] * 3 + [Vote("ppo", "sft", 0.0)], anchor="sft")
    >>> [(one.policy, round(one.rating, 4)) for one in found]
    [('ppo', 1.0986), ('sft', 0.0)]
    """
    names = sorted({name for vote in votes for name in (vote.first, vote.second)})
    if not names:
        raise DataError("there is no vote yet, so there is nothing to rate")
    if anchor is not None and anchor not in names:
        raise DataError(f"{anchor}: no vote names this policy; known are {', '.join(names)}")
    index = {name: number for number, name in enumerate(names)}
    design, shares = np.zeros((len(votes), len(names))), np.asarray([vote.share for vote in votes])
    for row, vote in enumerate(votes):
        design[row, index[vote.first]] += 1
        design[row, index[vote.second]] -= 1
    if prior <= 0:
        _require_finite(names, design, shares)
    ratings, hessian = _most_likely(design, shares, prior)
    contrast = np.eye(len(names)) - (1 / len(names) if anchor is None else np.eye(len(names))[index[anchor]])
    gradients = design * (shares - _sigmoid(design @ ratings))[:, None]
    inverse = np.linalg.pinv(hessian, hermitian=True)
    spread = inverse @ _by_cluster(votes, gradients).T
    covariance = contrast @ (inverse if prior > 0 else spread @ spread.T) @ contrast.T
    ratings, errors = contrast @ ratings, np.sqrt(np.maximum(covariance.diagonal(), 0))
    counts = np.abs(design).sum(0).astype(int)
    found = [
        Rating(name, at, error, at - NORMAL_95 * error, at + NORMAL_95 * error, count)
        for name, at, error, count in zip(names, ratings.tolist(), errors.tolist(), counts.tolist(), strict=True)
    ]
    return sorted(found, key=lambda one: (-one.rating, one.policy))


def _most_likely(design: np.ndarray, shares: np.ndarray, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Ratings with mean 0, and the negative Hessian there; Newton's method with steps that never go downhill."""
    count = design.shape[1]
    design = np.concatenate([design, np.eye(count) - 1 / count]) if prior else design
    shares = np.concatenate([shares, np.full(count, 0.5)]) if prior else shares
    weights = np.concatenate([np.ones(len(shares) - count), np.full(count, prior)]) if prior else np.ones(len(shares))

    def likelihood(ratings: np.ndarray) -> float:
        margin = design @ ratings
        return float((weights * (shares * margin - np.logaddexp(0, margin))).sum())

    ratings, size = np.zeros(count), float(np.abs(weights).sum())
    for _ in range(_STEPS):
        chance = _sigmoid(design @ ratings)
        gradient = design.T @ (weights * (shares - chance))
        hessian = design.T @ (design * (weights * chance * (1 - chance))[:, None])
        if np.abs(gradient).max() <= _CLOSE * size:
            break
        step, scale = np.linalg.pinv(hessian, hermitian=True) @ gradient, 1.0
        while likelihood(ratings + scale * step) < likelihood(ratings) and scale > _CLOSE:
            scale /= 2
        ratings = ratings + scale * step
    return ratings - ratings.mean(), hessian


def _by_cluster(votes: Sequence[Vote], gradients: np.ndarray) -> np.ndarray:
    """The gradients of each cluster added up, [m, policies]."""
    numbers: dict[object, int] = {}
    rows = [numbers.setdefault(vote.cluster or number, len(numbers)) for number, vote in enumerate(votes)]
    found = np.zeros((len(numbers), gradients.shape[1]))
    np.add.at(found, rows, gradients)
    return found


def _require_finite(names: Sequence[str], design: np.ndarray, shares: np.ndarray) -> None:
    """Each policy must be reached from each other along wins: that is when a finite optimum is there and unique."""
    beaten = np.eye(len(names), dtype=bool)
    for row, share in zip(design, shares, strict=True):
        first, second = int(row.argmax()), int(row.argmin())
        beaten[first, second] |= share > 0
        beaten[second, first] |= share < 1
    for _ in names:
        beaten = (beaten.astype(int) @ beaten.astype(int)) > 0
    if not beaten.all():
        one, other = (names[int(number)] for number in np.argwhere(~beaten)[0])
        raise DataError(
            f"{one} has not yet won against {other}, neither itself nor through others that it has beaten, so that no "
            "rating is most likely; collect more votes, or set prior above 0"
        )


def _sigmoid(margin: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -margin))
