"""How far people agree with each other, with themselves, and with the order of the page and the length of answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from statistics import median
from typing import Any

import numpy as np

from rlhf_lightning.people.judgements import Item, Judgement
from rlhf_lightning.people.rankings import Ranks, kendall_tau_b, pair_agreement, places, said_alike, signs
from rlhf_lightning.people.shares import Share, share_of


@dataclass(frozen=True)
class Person:
    """One annotator."""

    annotator: str
    ranked: int  # items
    skipped: int  # items
    seconds: float | None  # median per ranked item; None where none was ranked
    tied: float | None  # share of the pairs of answers that they call equal
    with_others: Share  # `pair_agreement` with everybody else on the same items
    with_self: Share  # `pair_agreement` of what they said of the same item at two times
    position: Share  # how often the answer at the top of the page is ranked first, less 1/K; 0 without a bias
    length: Share  # how often the longer of two answers is preferred, less 1/2; not wrong in itself


@dataclass(frozen=True)
class Disputed:
    """An item that people rank differently."""

    item: int
    disagreement: float  # 1 less the mean `pair_agreement` of all pairs of people; 1 where all say the opposite
    ranks: Mapping[str, Ranks]  # by annotator


@dataclass(frozen=True)
class Agreement:
    """What several people's judgements say about them."""

    items: int  # ranked by somebody
    shared: int  # ranked by at least two people
    judgements: int  # rankings, repeats included
    agreement: Share  # `pair_agreement` over all pairs of answers and of people
    ceiling: Share  # the same over pairs that one of the two orders, see `agreement_of`
    alpha: float | None  # `krippendorff_alpha`; None where it is not defined
    tau: float | None  # mean `kendall_tau_b` over pairs of people and items; None where it is not defined
    people: tuple[Person, ...]
    to_discuss: tuple[Disputed, ...]  # the largest disagreement first

    def summary(self) -> dict[str, Any]:
        """The numbers that travel with the data, as plain values."""
        kept = ("items", "shared", "judgements", "alpha", "tau")
        found = {name: getattr(self, name) for name in kept}
        return found | {"agreement": asdict(self.agreement), "ceiling": asdict(self.ceiling)}


def agreement_of(items: Iterable[Item], judgements: Iterable[Judgement]) -> Agreement:
    """All that is measured, of judgements in the order in which they were made.

    Where somebody ranked an item more than once, the last time counts, and the others tell how far they agree with
    themselves. Skipped items count nowhere but in the counts of the person.

    ``ceiling`` is what the held-out accuracy of a reward model is to be read against: of all cases in which one person
    puts an answer above another, the share in which a second person does the same; a tie of the second counts half, as
    a guess would. Pairs that the first one ties are no cases, as they teach a reward model nothing.

    Args:
        items: those that were shown.
        judgements: of any number of people.
    """
    shown = {item.number: item for item in items}
    said = list(judgements)
    ranked = [one for one in said if one.ranks is not None]
    last = last_ranks(ranked)
    shared = {number: ranks for number, ranks in last.items() if len(ranks) > 1}
    taus = [
        tau for ranks in shared.values() for a, b in combinations(ranks.values(), 2)
        if (tau := kendall_tau_b(a, b)) is not None
    ]  # fmt: skip
    names = sorted({one.annotator for one in said})
    return Agreement(
        items=len(last),
        shared=len(shared),
        judgements=len(ranked),
        agreement=share_of([_pairs_of_people(ranks.values()) for ranks in shared.values()]),
        ceiling=share_of([_ceiling(list(ranks.values())) for ranks in shared.values()]),
        alpha=krippendorff_alpha([list(ranks.values()) for ranks in shared.values()]),
        tau=float(np.mean(taus)) if taus else None,
        people=tuple(_person(name, [one for one in said if one.annotator == name], shown, last) for name in names),
        to_discuss=to_discuss(last),
    )


def last_ranks(judgements: Iterable[Judgement]) -> dict[int, dict[str, Ranks]]:
    """The last ranking of each person, by item and annotator; what they skip later does not take it back."""
    found: dict[int, dict[str, Ranks]] = defaultdict(dict)
    for one in judgements:
        if one.ranks is not None:
            found[one.item][one.annotator] = one.ranks
    return dict(found)


def krippendorff_alpha(items: Iterable[Sequence[Ranks]]) -> float | None:
    """`ordinal_alpha` of rankings: 1 for full agreement, 0 for that of chance, below for less.

    A unit is one answer of one item, and its values are the places that people gave it: the mean of the places that
    tied answers share, as a share of the way from the first (0) to the last (1), so that items with different K can be
    taken together. Items that only one person ranked have nothing to compare; who did not rank one is missing there.

    Args:
        items: the rankings of each, one for each person, each [K].

    Returns:
        None where no two people ranked the same item, or all values are the same.

    >>> krippendorff_alpha([[(1, 2, 3), (1, 2, 3)], [(2, 1, 3), (2, 1, 3)]])
    1.0
    """
    rows = [[places(ranks) for ranks in rankings] for rankings in items if len(rankings) > 1]
    return ordinal_alpha([answer for item in rows for answer in zip(*item, strict=True)])


def ordinal_alpha(units: Iterable[Iterable[Any]]) -> float | None:
    """Krippendorff's alpha with the ordinal metric, of values that can be sorted.

    With o(c, k) the coincidences of two values within a unit, n(c) their margins and n = sum n(c):

        alpha = 1 - (n - 1) sum o(c, k) d(c, k) / sum n(c) n(k) d(c, k)
        d(c, k) = (sum of n(g) for g from c to k - (n(c) + n(k)) / 2)^2

    Args:
        units: what each person who judged it said of each unit; those with fewer than two values do not count.

    Returns:
        None where there is nothing to compare, or all values are the same.

    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability; 2018, Content Analysis, 4th edition, chapter
    on reliability.
    """
    rows = Counter(unit for one in units if len(unit := tuple(one)) > 1)
    values = sorted({value for unit in rows for value in unit})
    index = {value: number for number, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit, times in rows.items():
        counts = np.bincount([index[value] for value in unit], minlength=len(values)).astype(float)
        coincidences += times * (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    margins = coincidences.sum(1)
    upto = margins.cumsum() - margins / 2
    distance = (upto[:, None] - upto[None, :]) ** 2
    expected = float((np.outer(margins, margins) * distance).sum())
    if expected == 0:
        return None
    return 1 - (float(margins.sum()) - 1) * float((coincidences * distance).sum()) / expected


def to_discuss(last: Mapping[int, Mapping[str, Ranks]]) -> tuple[Disputed, ...]:
    """Items on which people do not say the same, those on which they differ most first.

    Args:
        last: of `last_ranks`.
    """
    found = []
    for number, ranks in last.items():
        if len(ranks) > 1:
            alike, pairs = _pairs_of_people(ranks.values())
            found.append(Disputed(number, 1 - alike / pairs, dict(ranks)))
    return tuple(sorted((one for one in found if one.disagreement > 0), key=lambda one: (-one.disagreement, one.item)))


def _pairs_of_people(rankings: Iterable[Ranks]) -> tuple[float, float]:
    found = [pair_agreement(a, b) for a, b in combinations(rankings, 2)]
    return sum(alike for alike, _ in found), float(sum(pairs for _, pairs in found))


def _ceiling(rankings: Sequence[Ranks]) -> tuple[float, float]:
    """Credit and cases of `Agreement.ceiling` in one item: both members of each pair of people are once the first."""
    found = [
        said_alike(a, b) for first, second in combinations(rankings, 2) for a, b in ((first, second), (second, first))
    ]
    return sum(alike for alike, _ in found), sum(cases for _, cases in found)


def _person(
    name: str, said: Sequence[Judgement], shown: Mapping[int, Item], last: Mapping[int, Mapping[str, Ranks]]
) -> Person:
    ranked = [one for one in said if one.ranks is not None]
    newest = {one.item: one for one in ranked}
    others = [
        pair_agreement(ranks[name], theirs)
        for ranks in last.values() if name in ranks
        for other, theirs in ranks.items() if other != name
    ]  # fmt: skip
    times = defaultdict(list)
    for one in ranked:
        times[one.item].append(one.ranks or ())
    again = [pair_agreement(a, b) for item in times.values() for a, b in pairwise(item)]
    ordered = share_of([_ordered(one.ranks or ()) for one in newest.values()]).mean
    lengths = [_longer(one, shown[one.item]) for one in newest.values() if one.item in shown]
    return Person(
        annotator=name,
        ranked=len(newest),
        skipped=len({one.item for one in said} - set(newest)),
        seconds=median(one.seconds for one in ranked) if ranked else None,
        tied=None if ordered is None else 1 - ordered,
        with_others=share_of(others),
        with_self=share_of(again),
        position=share_of([_top_first(one) for one in ranked]),
        length=share_of([(good - pairs / 2, pairs) for good, pairs in lengths]),
    )


def _ordered(ranks: Ranks) -> tuple[float, float]:
    """How many pairs of answers are not tied, and of how many."""
    return said_alike(ranks, ranks)[1], float(len(ranks) * (len(ranks) - 1) // 2)


def _top_first(judgement: Judgement) -> tuple[float, float]:
    """Whether the answer at the top of the page is ranked first, less 1/K; a first place of n counts 1/n."""
    ranks, top = judgement.ranks or (), judgement.order[0]
    first = [i for i, rank in enumerate(ranks) if rank == min(ranks)]
    return (1 / len(first) if top in first else 0.0) - 1 / len(ranks), 1.0


def _longer(judgement: Judgement, item: Item) -> tuple[float, float]:
    """In how many of the ordered pairs with different lengths the longer answer is preferred, and of how many."""
    lengths = tuple(-len(text_of(completion)) for completion in item.completions)
    both = signs(judgement.ranks or ()) * signs(lengths)
    return float((both > 0).sum() / 2), float((both != 0).sum() / 2)


def text_of(completion: Any) -> str:
    """What an answer says, of a text or of messages, whose content is taken together."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)
