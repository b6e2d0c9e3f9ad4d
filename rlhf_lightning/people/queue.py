"""Which item a person gets next, and in which order they see its answers."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.people.entries import Entry
from rlhf_lightning.people.judgements import Item
from rlhf_lightning.people.rankings import Ranks, pair_agreement
from rlhf_lightning.rules.ranges import require

Order = Literal["random", "file", "uncertain", "disagreement"]
APART = 10  # other items between an item and its repeat, at least


@dataclass(frozen=True)
class Plan:
    """How items are dealt.

    Args:
        order: ``random`` (the same for all), ``file``, ``uncertain`` (what a reward model or a judge is least sure of
            first: the smallest gap between the two best ``scores``, or the largest mean ``scores_std`` of an ensemble)
            or ``disagreement`` (first what others ranked differently, then at random).
        overlap: every m-th item goes to everybody, the others to one person each; 1: all; 0: none.
        repeats: share of the items that a person gets a second time, at least `APART` items later, to see whether they
            agree with themselves.
        hold: seconds for which an item that somebody has been shown is given to nobody else.

    Raises:
        ConfigError: an unknown order, or a number out of range.
    """

    order: Order = "random"
    overlap: int = 5
    repeats: float = 0.0
    hold: float = 900.0

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ConfigError(f"--order {self.order}: choose one of {', '.join(get_args(Order))}")
        require("--overlap", self.overlap, at_least=0)
        require("--repeats", self.repeats, at_least=0, at_most=0.5)


@dataclass(frozen=True)
class Turn:
    """An item for a person."""

    item: int
    showing: int  # 1 where they had it before
    order: tuple[int, ...]  # the completion at each place of the page, from the top


class Queue:
    """Deals the items of a record. Not for several threads at once.

    Args:
        items: of the record.
        plan: how they are dealt.
        seed: decides all that is drawn.
        clock: seconds that only grow.
    """

    def __init__(self, items: Sequence[Item], plan: Plan, seed: int, clock: Callable[[], float] = time.monotonic):
        self.plan, self._seed, self._clock = plan, seed, clock
        self._answers = {item.number: len(item.completions) for item in items}
        self._sequence = _sequence(items, plan.order, seed)
        shared = [item.number for at, item in enumerate(items) if plan.overlap and at % plan.overlap == 0]
        self._shared = frozenset(shared)
        self._seen: dict[str, dict[int, int]] = defaultdict(dict)  # by person: item and how often, in order of time
        self._ranks: dict[int, dict[str, Ranks]] = defaultdict(dict)  # by item: the last ranking of each person
        self._closed: set[int] = set()  # ranked, and not shared
        self._disputed: dict[int, float] = {}
        self._held: dict[int, tuple[str, float]] = {}
        self._at: dict[str, Turn] = {}

    def fill(self, entries: Iterable[Entry]) -> None:
        """Begin again from what is in the record and counts."""
        for kept in (self._seen, self._ranks, self._closed, self._disputed, self._at):
            kept.clear()
        for entry in entries:
            self.judged(entry)

    def judged(self, entry: Entry) -> None:
        """Somebody ranked or skipped an item."""
        item, annotator = entry.item, entry.annotator
        seen = self._seen[annotator]
        seen[item] = max(seen.get(item, 0), entry.showing + 1)
        self._at.pop(annotator, None)
        self._held.pop(item, None)
        if entry.ranks is not None:
            self._ranks[item][annotator] = entry.ranks
            if item not in self._shared:
                self._closed.add(item)
            self._disputed[item] = _disagreement(list(self._ranks[item].values()))

    def next(self, annotator: str) -> Turn | None:
        """What the person is to judge; the same again until they have. None: nothing is left."""
        if (turn := self._at.get(annotator)) is None:
            turn = self._repeat(annotator) or self._fresh(annotator) or self._repeat(annotator, last=True)
            if turn is None:
                return None
            self._at[annotator] = turn
        self._held[turn.item] = (annotator, self._clock() + self.plan.hold)
        return turn

    def again(self, annotator: str, item: int, showing: int) -> Turn:
        """The person gets this item now: they took back what they said of it."""
        self._at[annotator] = self._turn(annotator, item, showing)
        return self._at[annotator]

    def progress(self, annotator: str) -> dict[str, int]:
        """``done`` and ``of``: how many items the person judged, and how many they could."""
        seen = self._seen[annotator]
        theirs = sum(item in self._closed for item in seen)
        return {"done": len(seen), "of": len(self._sequence) - len(self._closed) + theirs}

    def _fresh(self, annotator: str) -> Turn | None:
        seen, now = self._seen[annotator], self._clock()
        if self.plan.order == "disagreement":
            disputed = [i for i, d in self._disputed.items() if d > 0 and i not in seen]
            if disputed:
                return self._turn(annotator, max(disputed, key=lambda i: (self._disputed[i], -i)), 0)
        for item in self._sequence:
            if item in seen or item in self._closed:
                continue
            if item not in self._shared and item in self._held:
                who, until = self._held[item]
                if who != annotator and until > now:
                    continue
            return self._turn(annotator, item, 0)
        return None

    def _repeat(self, annotator: str, last: bool = False) -> Turn | None:
        """An item of before, with the plan's probability; ``last``: nothing else is left, and repeats are owed."""
        seen = self._seen[annotator]
        judged, again = len(seen), sum(times > 1 for times in seen.values())
        if not self.plan.repeats or again >= round(self.plan.repeats * judged):
            return None
        draw = random.Random(f"{self._seed}/{annotator}/{judged}/{again}")
        if not last and draw.random() >= 2 * self.plan.repeats:
            return None
        once = [item for item in list(seen)[: max(judged - APART, 0)] if seen[item] == 1]
        return self._turn(annotator, draw.choice(once), 1) if once else None

    def _turn(self, annotator: str, item: int, showing: int) -> Turn:
        order = list(range(self._answers[item]))
        random.Random(f"{self._seed}/{annotator}/{item}/{showing}").shuffle(order)
        return Turn(item, showing, tuple(order))


def _sequence(items: Sequence[Item], order: Order, seed: int) -> list[int]:
    numbers = [item.number for item in items]
    if order == "file":
        return numbers
    random.Random(f"{seed}/items").shuffle(numbers)
    if order == "uncertain":
        doubt = {item.number: uncertainty(item.row) for item in items}
        if all(value is None for value in doubt.values()):
            raise ConfigError(
                "--order uncertain: no row of the candidates has scores or scores_std; score them first "
                "(`rlhf-lightning score REWARD CANDIDATES --out FILE`), or choose another order"
            )
        numbers.sort(key=lambda n: -(doubt[n] if doubt[n] is not None else -float("inf")))  # type: ignore[operator]
    return numbers


def uncertainty(row: dict[str, Any] | Any) -> float | None:
    """How unsure a row's scores are: the mean of ``scores_std``, or less the gap between the two best ``scores``.

    >>> uncertainty({"scores": [1.0, 3.0, 2.5]}), uncertainty({"scores_std": [0.5, 1.5]}), uncertainty({})
    (-0.5, 1.0, None)
    """
    spread, scores = ([v for v in row.get(n) or () if isinstance(v, int | float)] for n in ("scores_std", "scores"))
    if spread:
        return statistics.fmean(spread)
    if len(scores) < 2:
        return None
    best, second = sorted(scores, reverse=True)[:2]
    return second - best


def _disagreement(rankings: Sequence[Ranks]) -> float:
    """1 less the agreement of all pairs of people, 0 where one person ranked alone."""
    found = [pair_agreement(a, b) for at, a in enumerate(rankings) for b in rankings[:at]]
    pairs = sum(count for _, count in found)
    return 1 - sum(alike for alike, _ in found) / pairs if pairs else 0.0
