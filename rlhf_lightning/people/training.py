"""What training takes from people: one ranking for each item, and how far they agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.people.agreement import Agreement, agreement_of, last_ranks
from rlhf_lightning.people.judgements import Item, Judgement
from rlhf_lightning.people.merging import Merged, Method, merge
from rlhf_lightning.people.rankings import said_alike
from rlhf_lightning.people.record import items, judgements
from rlhf_lightning.people.shares import Share, share_of

PEOPLE = "people"  # where the provenance of rankings keeps `FromPeople.summary`
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True)
class FromPeople:
    """Rankings made of the judgements of people."""

    method: Method
    merged: Merged
    agreement: Agreement
    with_judge: Share  # `agreement_with_judge`

    def summary(self) -> dict[str, Any]:
        """What `provenance.json` keeps of them: agreement, ceiling, alpha, tau, weights of the annotators, counts."""
        found = {"merge": self.method, **self.agreement.summary(), **self.merged.summary()}
        found |= {"with_judge": asdict(self.with_judge)} if self.with_judge.mean is not None else {}
        for person in self.agreement.people:
            known = found["annotators"].setdefault(person.annotator, {})
            known |= {"ranked": person.ranked, "skipped": person.skipped, "with_others": asdict(person.with_others)}
        return found

    def sentence(self) -> str:
        """The same in one line for the screen."""
        merged, found = self.merged, self.agreement
        people = "1 person" if len(merged.weights) == 1 else f"{len(merged.weights)} people"
        parts = [f"{people} ranked {found.items} items, {found.shared} of them by two or more"]
        parts += [f"{merged.left_out} items that nobody ranked are left out"] if merged.left_out else []
        if found.ceiling.mean is not None:
            measures = [f"{name} {value:.2f}" for name, value in (("alpha", found.alpha), ("tau", found.tau))
                        if value is not None]  # fmt: skip
            parts.append(f"they agree on {found.ceiling} of the pairs that one of them orders ({', '.join(measures)})")
        if self.with_judge.mean is not None:
            parts.append(f"the judge of the candidates agrees with them on {self.with_judge}")
        if len(merged.weights) > 1:
            parts.append(f"weights: {', '.join(f'{name} {weight:.2f}' for name, weight in merged.weights.items())}")
        return "; ".join(parts)


def is_record(path: str | Path) -> bool:
    """Whether a file is a record of judgements, and not one of rows; a file that is not there is none."""
    place = Path(path)
    if not place.is_file():
        return False
    with place.open("rb") as stream:
        return stream.read(len(_SQLITE)) == _SQLITE


def read_record(path: str | Path, method: Method = "weighted") -> FromPeople:
    """Merge what is in a record; a server may have it at the same time.

    Raises:
        DataError: the file is not a record, or damaged.
    """
    return from_people(items(path), judgements(path), method)


def from_people(shown: Iterable[Item], said: Sequence[Judgement], method: Method = "weighted") -> FromPeople:
    """Merge judgements and measure how far they agree."""
    shown = list(shown)
    found = agreement_of(shown, said)
    return FromPeople(method, merge(shown, said, method), found, agreement_with_judge(shown, said))


def agreement_with_judge(shown: Iterable[Item], said: Iterable[Judgement]) -> Share:
    """How often a judge orders two answers as a person does; a tie of the judge counts half.

    Args:
        shown: candidates with a column ``scores`` of the judge, the highest for the best; others do not count.
        said: of any number of people; each counts by itself, with their last ranking of an item.
    """
    last, counted = last_ranks(said), []
    for item in shown:
        scores = item.row.get("scores")
        if scores is None or any(score is None for score in scores):
            continue
        ranks = tuple(1 + sum(other > score for other in scores) for score in scores)
        cases = [said_alike(theirs, ranks) for theirs in last.get(item.number, {}).values()]
        counted.append((sum(alike for alike, _ in cases), sum(pairs for _, pairs in cases)))
    return share_of(counted)


def ceiling_of(summaries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """How far the people behind several rankings agree, all cases taken together; empty where nothing tells.

    Args:
        summaries: of `FromPeople.summary`, as the provenance of the rankings keeps it.

    Returns:
        ``people_agree`` and, where it is known, ``people_agree_stderr``; shares between 0 and 1.
    """
    known = [one["ceiling"] for one in summaries if (one.get("ceiling") or {}).get("mean") is not None]
    total = sum(one["cases"] for one in known)
    if not total:
        return {}
    mean = sum(one["mean"] * one["cases"] for one in known) / total
    if any(one["stderr"] is None for one in known):
        return {"people_agree": mean}
    stderr = sum((one["stderr"] * one["cases"]) ** 2 for one in known) ** 0.5 / total
    return {"people_agree": mean, "people_agree_stderr": stderr}
