"""Collect what is wrong with rows, so that one error can name several places at once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rlhf_lightning.errors import DataError

ALIKE = 5  # findings in the same words that are spelled out; where all rows have one fault, the others say nothing new


class BadRow(Exception):
    """A row that cannot be used, raised where it is read; with the column (1 is the first) where that is known."""

    def __init__(self, reason: str, column: int | None = None) -> None:
        super().__init__(reason)
        self.column = column


class Problems:
    """Findings about rows; the first ones are kept, and all are counted.

    Args:
        shown: how many findings are kept word for word in ``first``.
        alike: how many of them may have the same words.
    """

    def __init__(self, shown: int = 5, alike: int = ALIKE) -> None:
        self.shown, self.alike = shown, alike
        self.count = 0
        self.first: list[str] = []
        self._untold = 0
        self._alike: Counter[str] = Counter()
        self._notes: dict[str, list[Any]] = {}

    def note(self, what: str, where: str) -> None:
        """Something odd about a row that is used all the same; its kind is the text before the first comma."""
        kind = what.partition(",")[0]
        self._notes.setdefault(kind, [0, where, what])[0] += 1

    def notes(self) -> list[str]:
        """Each kind of oddity once, with its first row and how many there are."""
        return [f"{where}: {what} ({count} rows)" for count, where, what in self._notes.values()]

    def add(self, where: str, reason: str, rows: int = 1) -> None:
        """Note that ``rows`` rows at ``where`` (``file:line`` or ``file:line:column``) cannot be used, and why."""
        self.count += rows
        if len(self.first) < self.shown and self._alike[reason] < self.alike:
            self._alike[reason] += 1
            self.first.append(f"{where}: {reason}.")
        else:
            self._untold += rows

    def add_bad(self, file: object, line: int | str, bad: BadRow, rows: int = 1) -> None:
        """Note a row that could not be read."""
        self.add(f"{file}:{line}" if bad.column is None else f"{file}:{line}:{bad.column}", str(bad), rows)

    def __str__(self) -> str:
        """The first findings, one a line, and how many more there are."""
        return "\n".join([*self.first, *([f"... and {self._untold} more"] if self._untold else [])])

    def raise_above(self, budget: int, accepted: int) -> None:
        """Raise `DataError` if more than ``budget`` rows are bad, or none of them is good.

        Args:
            budget: bad rows to put up with.
            accepted: how many rows are good.
        """
        if self.count <= budget and (accepted or not self.count):
            return
        lines = [str(self)]
        if self.count > 1 or budget:
            allowed = f" (max_bad_rows is {budget})" if budget else ""
            lines.append(f"{self.count} of {accepted + self.count} rows cannot be used{allowed}.")
        raise DataError("\n".join(lines))
