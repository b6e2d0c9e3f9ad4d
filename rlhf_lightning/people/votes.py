"""What people said of answers whose policies are known, as votes, win rates and ratings of these policies."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lightning.errors import DataError
from rlhf_lightning.people.agreement import text_of
from rlhf_lightning.people.judgements import Item, Judgement
from rlhf_lightning.people.ratings import Rating, Vote, bradley_terry, wilson
from rlhf_lightning.people.record import items, judgements
from rlhf_lightning.people.shares import Interval

POLICIES, WEIGHTS = "policies", "weights"  # columns of an item: of each answer, the name and the SHA-256 of its policy
GOOD, BAD = "good", "bad"  # marks of both answers of a tie


class Compared(NamedTuple):
    """A vote, and what it was about."""

    vote: Vote
    prompt: str
    lengths: tuple[int, int]  # of the two answers, characters
    both_bad: bool


@dataclass(frozen=True)
class Pair:
    """Two policies that met."""

    first: str
    second: str
    wins: int  # of the first
    losses: int
    both_good: int  # ties, those without a mark as well
    both_bad: int
    win_rate: Interval  # of the first; ties are half a win


@dataclass(frozen=True)
class Standings:
    """What all votes say of the policies."""

    votes: int
    skipped: int
    people: int
    left: Interval  # how often the answer at the left wins, ties half: 1/2 without a position bias
    pairs: tuple[Pair, ...]
    ratings: tuple[Rating, ...]  # the strongest first; none without a vote
    prior: float  # tied votes that each policy was given, without which no rating would be finite; mostly 0

    def summary(self) -> dict[str, Any]:
        """The same as plain values."""
        found = asdict(self) | {"left": self.left._asdict()}
        found["pairs"] = [asdict(pair) | {"win_rate": pair.win_rate._asdict()} for pair in self.pairs]
        return found


def read_votes(path: str | Path) -> tuple[list[Item], list[Judgement]]:
    """The items and the judgements of a record whose answers have policies; a server may have it at the same time.

    Raises:
        DataError: it is no record, or one of answers whose policies are not known.
    """
    found = items(path)
    policies_of(found, path)
    return found, judgements(path)


def policies_of(found: Iterable[Item], path: str | Path) -> dict[str, str]:
    """The policies that wrote the answers of a record: SHA-256 of the weights by name.

    Raises:
        DataError: it is not known who wrote an answer.
    """
    known: dict[str, str] = {}
    for item in found:
        names, weights = item.row.get(POLICIES), item.row.get(WEIGHTS)
        if names is None or weights is None:
            raise DataError(f"{path}: holds rankings of candidates, not votes; `rlhf-lightning arena` collects those")
        known |= dict(zip(names, weights, strict=True))
    return known


def compared(found: Iterable[Item], said: Iterable[Judgement]) -> list[Compared]:
    """A vote for each two answers that somebody compared, in the order in which that was said.

    Votes on one prompt go together: they are one cluster.
    """
    shown = {item.number: item for item in found}
    votes = []
    for one in said:
        item, ranks = shown[one.item], one.ranks
        if ranks is None:
            continue
        names, prompt = item.row[POLICIES], json.dumps(item.prompt, sort_keys=True)
        for a, b in combinations(one.order, 2):
            share = 0.5 if ranks[a] == ranks[b] else float(ranks[a] < ranks[b])
            lengths = (len(text_of(item.completions[a])), len(text_of(item.completions[b])))
            bad = bool(one.flags) and BAD in one.flags[a] and BAD in one.flags[b]
            votes.append(Compared(Vote(names[a], names[b], share, prompt), prompt, lengths, bad))
    return votes


def standings(found: Sequence[Item], said: Sequence[Judgement], anchor: str | None = None) -> Standings:
    """Win rates of each two policies and ratings of all.

    Args:
        found: items with their policies.
        said: what people said of them.
        anchor: see `bradley_terry`.
    """
    every = compared(found, said)
    votes = [one.vote for one in every]
    ratings, prior = rated(votes, anchor) if votes else ([], 0.0)
    return Standings(
        votes=len(votes),
        skipped=sum(one.ranks is None for one in said),
        people=len({one.annotator for one in said}),
        left=wilson(sum(vote.share for vote in votes), len(votes)),
        pairs=tuple(_pairs(every)),
        ratings=tuple(ratings),
        prior=prior,
    )


def rated(votes: Sequence[Vote], anchor: str | None = None) -> tuple[list[Rating], float]:
    """`bradley_terry`, and the prior that it took: 1 where no rating is most likely, since one has not lost yet."""
    try:
        return bradley_terry(votes, anchor), 0.0
    except DataError:
        return bradley_terry(votes, anchor, prior=1.0), 1.0


def _pairs(every: Iterable[Compared]) -> list[Pair]:
    met: dict[tuple[str, str], list[tuple[float, bool]]] = defaultdict(list)
    for one in every:
        first, second = one.vote.first, one.vote.second
        share = one.vote.share if first < second else 1 - one.vote.share
        met[min(first, second), max(first, second)].append((share, one.both_bad))
    return [_pair(first, second, shares) for (first, second), shares in sorted(met.items())]


def _pair(first: str, second: str, said: Sequence[tuple[float, bool]]) -> Pair:
    shares = [share for share, _ in said]
    bad = sum(both_bad and share == 0.5 for share, both_bad in said)
    rate = wilson(sum(shares), len(shares))
    return Pair(first, second, shares.count(1.0), shares.count(0.0), shares.count(0.5) - bad, bad, rate)


def weights_by_name(known: Mapping[str, str], given: Mapping[str, str], path: str | Path) -> dict[str, str]:
    """The policies of a record and those that are to be compared in it now, together: a name is one policy for good.

    Raises:
        DataError: a name stands for other weights there, or the same weights have another name.
    """
    for name, weights in given.items():
        if known.get(name, weights) != weights:
            raise DataError(
                f"{name}: in {path} this name stands for other weights; call it otherwise, {name}_2=FOLDER, or begin "
                "another record with --record"
            )
        others = [other for other, theirs in (*known.items(), *given.items()) if theirs == weights and other != name]
        if others:
            raise DataError(f"{name} and {others[0]}: have the same weights; there is nothing to compare")
    return {**known, **given}
