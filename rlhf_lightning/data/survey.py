"""What can be said of rows one by one, in little memory: types, lengths, ties, and how length goes with the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.rows.fields import as_label
from rlhf_lightning.data.rows.repeats import Repeats, pair_of
from rlhf_lightning.data.rows.types import ROW_TYPES, StageKind

if TYPE_CHECKING:
    from rlhf_lightning.types import Row

BAR = 40  # characters of the longest bar of a histogram


class Histogram:
    """Counts of lengths by powers of two, and their mean and most."""

    def __init__(self) -> None:
        self._counts = [0] * 64  # by bits
        self.total = self.most = 0

    def add(self, length: int) -> None:
        """Another length."""
        self._counts[length.bit_length()] += 1
        self.total += length
        if length > self.most:
            self.most = length

    @property
    def number(self) -> int:
        """How many lengths were added."""
        return sum(self._counts)

    def lines(self, unit: str) -> list[str]:
        """The histogram as text."""
        if not self.number:
            return []
        largest, found = max(self._counts), [power for power, count in enumerate(self._counts) if count]
        shown = [f"lengths in {unit}: mean {self.total / self.number:.0f}, longest {self.most}"]
        for power in range(found[0], found[-1] + 1):
            count, bar = self._counts[power], "#" * round(BAR * self._counts[power] / largest)
            shown.append(f"  {2 ** max(power - 1, 0):>8} to {2**power - 1:<8} {count:>9} {bar}".rstrip())
        return shown

    def facts(self) -> dict[str, Any]:
        """The same as numbers."""
        counts = {str(2**power - 1): self._counts[power] for power in range(64) if self._counts[power]}
        return {"mean": self.total / max(self.number, 1), "longest": self.most, "rows_up_to": counts}


class Survey:
    """The rows of a file as a stage would use them.

    Args:
        kind: what the stage takes.
        leaks: whether they will be compared with the rows of another survey.
    """

    def __init__(self, kind: StageKind, leaks: bool) -> None:
        self.kind, self.rows, self.unused = kind, 0, Counter[str]()
        self.types, self.other = Counter[str](), Counter[str]()
        self.repeats, self.lengths = Repeats(kind, leaks), Histogram()
        self._longer = Counter[str]()  # pairs by which of their answers is longer
        self._labelled: dict[bool, Histogram] = {True: Histogram(), False: Histogram()}

    def add(self, row: Row, name: str) -> None:
        """Another row, which is sound, and its type."""
        self.rows += 1
        self.types[name] += 1
        columns = ROW_TYPES[name]
        values = [row[column] for column in columns]
        self.repeats.add(row, name, values)
        if len(row) > len(columns):
            self.other.update(column for column in row if column not in columns)
        length = 0
        for value in values:
            length += len(value) if type(value) is str else _length(value)
        self.lengths.add(length)
        if self.kind in ("comparisons", "feedback"):
            self._judge(row, name)

    def _judge(self, row: Row, name: str) -> None:
        """Ties, and which answers are longer."""
        if name == "prompt+completion+label":
            self._labelled[bool(as_label(row["label"]))].add(_length(row["completion"]))
            return
        if name != "prompt+completions+ranks":
            _, chosen, rejected = pair_of(row)
            self._compare(_length(chosen), _length(rejected))
            return
        ranks, lengths = row["ranks"], [_length(answer) for answer in row["completions"]]
        if len(set(ranks)) == 1 and self.kind == "comparisons":
            self.unused["tied"] += 1
        if self.kind == "feedback":
            self.unused["undecided"] += sum(sum(b > a for b in ranks) == sum(b < a for b in ranks) for a in ranks)
        for i, a in enumerate(ranks):
            for j, b in enumerate(ranks):
                if a < b:
                    self._compare(lengths[i], lengths[j])

    def _compare(self, better: int, worse: int) -> None:
        self._longer["better" if better > worse else "worse" if worse > better else "neither"] += 1

    def used(self) -> int:
        """Rows that a stage would use, as far as this can be told without a tokenizer."""
        return self.rows - self.unused["tied"]

    def bias(self) -> list[str]:
        """How length goes with the labels."""
        pairs = self._longer["better"] + self._longer["worse"]
        lines = (
            [f"the better answer is the longer one in {self._longer['better'] / pairs:.0%} of {pairs} pairs"]
            if pairs
            else []
        )
        good, bad = self._labelled[True], self._labelled[False]
        if good.number and bad.number:
            lines.append(
                f"good answers have {good.total / good.number:.0f} characters and bad ones {bad.total / bad.number:.0f}"
                f" on average ({good.number} and {bad.number} answers)"
            )
        return lines

    def facts(self) -> dict[str, Any]:
        """The counts, for scripts."""
        found = {"rows": self.rows, "used": self.used(), "types": dict(self.types), **self.unused}
        found |= {"duplicates": self.repeats.duplicates(), "contradictions": self.repeats.contradictions()}
        pairs = {f"{which}_answer_longer": count for which, count in self._longer.items()}
        labels = (
            {"good": self._labelled[True].number, "bad": self._labelled[False].number}
            if any(part.number for part in self._labelled.values())
            else {}
        )
        return found | pairs | labels | {"other_columns": dict(self.other), "characters": self.lengths.facts()}


def _length(value: Any) -> int:
    """Characters of a text, a conversation, or several of either."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return len(str(value.get("content") or ""))
    return sum(map(_length, value)) if isinstance(value, list) else 0  # ranks and labels
