"""Several people's rankings of an item become one, each person weighted by how reliable they are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.people.agreement import last_ranks
from rlhf_lightning.people.judgements import Item, Judgement
from rlhf_lightning.people.rankings import Ranks, signs

Method = Literal["weighted", "majority"]
METHODS: tuple[Method, ...] = ("weighted", "majority")
PRIOR, PRIOR_ACCURACY = 10.0, 0.75  # so many pairs at that accuracy stand beside what a person said
_OTHERS = ("ranks", "scores", "chosen", "rejected", "margin")  # what was said of the answers before people were asked
_ROUNDS, _CLOSE = 1000, 1e-10  # of expectation and maximisation at most; the change of an accuracy that ends them

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """One ranking for each item that somebody ranked."""

    rows: list[dict[str, Any]]  # columns of the candidates, prompt, completions, ranks, judgements, annotators
    left_out: int  # items that nobody ranked
    weights: dict[str, float]  # of a person's word on a pair of answers, by annotator
    accuracies: dict[str, float]  # estimated share of pairs that a person orders right; empty for a majority

    def summary(self) -> dict[str, Any]:
        """The numbers that travel with the data."""
        people = {
            name: {"weight": weight, **({"accuracy": self.accuracies[name]} if self.accuracies else {})}
            for name, weight in self.weights.items()
        }
        return {"merged": len(self.rows), "left_out": self.left_out, "annotators": people}


def merge(items: Iterable[Item], judgements: Iterable[Judgement], method: Method = "weighted") -> Merged:
    """One row for each item that somebody ranked, in the order of the items.

    Of two answers, that one wins for which the weights of the people who put it above the other add up to more; where
    they add up to the same, or all tie them, neither wins. The rank of an answer follows from how many others it beats,
    a draw counting half (Copeland), so that answers may be tied, also where three beat each other in a circle.

    A row has the columns of its candidates, without what others said of the answers (`ranks`, `scores`, ...), and
    ``judgements`` (how many people ranked it) and ``annotators`` (their weights, which add up to 1).

    Args:
        items: the candidates.
        judgements: in the order in which they were made; of several by one person the last counts.
        method: ``majority`` gives everybody the weight 1; ``weighted`` log(p / (1 - p)) with p of `accuracies`, but at
            least 0: someone who is right no more often than chance is not heard where others are.

    Raises:
        ConfigError: an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"merge={method}: must be one of {', '.join(METHODS)}")
    said = last_ranks(judgements)
    known = accuracies(said.values()) if method == "weighted" else {}
    names = sorted({name for ranks in said.values() for name in ranks})
    weights = {name: max(0.0, float(np.log(known[name] / (1 - known[name])))) if known else 1.0 for name in names}
    for name in names if known else ():
        if weights[name] == 0:
            log.warning("%s orders answers as the others do no more often than chance; look at what they ranked", name)
    rows, left_out = [], 0
    for item in items:
        if ranks := said.get(item.number):
            rows.append(_row(item, ranks, weights))
        else:
            left_out += 1
    return Merged(rows, left_out, weights, known)


def accuracies(rankings: Iterable[Mapping[str, Ranks]]) -> dict[str, float]:
    """How often each person orders two answers right, where nobody knows what is right; between 0 and 1.

    Each pair of answers has a true order, both equally likely, and each person tells it with a probability of their own
    or says the opposite. These are found by expectation and maximisation, from the majority on; of people who tie a
    pair, and of pairs on which only one person has a word, nothing is learned. A prior of `PRIOR` pairs at
    `PRIOR_ACCURACY` keeps few judgements from telling much.

    Args:
        rankings: of each item, by annotator.

    Source: Dawid and Skene 1979, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, with two
    classes and one accuracy for each observer.
    """
    names: dict[str, int] = {}
    pairs: list[list[tuple[int, int]]] = []  # of each pair of answers: who said it, and 1 or -1
    for ranks in rankings:
        people = [names.setdefault(name, len(names)) for name in ranks]
        orders = [signs(one) for one in ranks.values()]
        for a, b in combinations(range(len(orders[0])), 2) if orders else ():
            words = [(who, int(order[a, b])) for who, order in zip(people, orders, strict=True) if order[a, b]]
            if len(words) > 1:
                pairs.append(words)
    return dict(zip(names, _maximised(pairs, len(names)).tolist(), strict=True))


def _maximised(pairs: Sequence[Sequence[tuple[int, int]]], people: int) -> np.ndarray:
    where = np.asarray([number for number, words in enumerate(pairs) for _ in words], dtype=int)
    who = np.asarray([name for words in pairs for name, _ in words], dtype=int)
    word = np.asarray([word for words in pairs for _, word in words], dtype=float)
    counts = np.bincount(who, minlength=people) + PRIOR
    right = np.full(people, PRIOR_ACCURACY)
    for _ in range(_ROUNDS):
        evidence = np.bincount(where, word * np.log(right / (1 - right))[who], minlength=len(pairs))
        agrees = 1 / (1 + np.exp(-word * evidence[where]))  # probability that the word is true
        before, right = right, (np.bincount(who, agrees, minlength=people) + PRIOR * PRIOR_ACCURACY) / counts
        if np.abs(right - before).max(initial=0.0) < _CLOSE:
            break
    return right


def _row(item: Item, ranks: Mapping[str, Ranks], weights: Mapping[str, float]) -> dict[str, Any]:
    heard = {name: weights[name] for name in ranks}
    if not any(heard.values()):
        heard = dict.fromkeys(heard, 1.0)  # all are at chance: better heard alike than not at all
    total = sum(heard.values())
    kept = {name: value for name, value in item.row.items() if name not in _OTHERS}
    return kept | {
        "prompt": item.prompt,
        "completions": list(item.completions),
        "ranks": merged_ranks([(ranks[name], weight) for name, weight in heard.items()]),
        "judgements": len(ranks),
        "annotators": {name: round(weight / total, 4) for name, weight in heard.items()},
    }


def merged_ranks(rankings: Sequence[tuple[Ranks, float]]) -> list[int]:
    """One ranking of several with weights, see `merge`; competition ranks, [K].

    >>> merged_ranks([((1, 2, 3), 1.0), ((1, 3, 2), 1.0), ((2, 1, 3), 1.0)])
    [1, 2, 3]
    >>> merged_ranks([((1, 2, 3), 1.0), ((1, 3, 2), 1.0)])
    [1, 2, 2]
    """
    margins = sum(weight * signs(ranks) for ranks, weight in rankings)
    beats = np.sign(np.round(margins, 9)).sum(1)
    return [1 + int((beats > own).sum()) for own in beats]
