"""Collect what is wrong with a file, so that one error can name several places at once."""

from __future__ import annotations

from rlhf_lightning.errors import DataError


class Problems:
    """Findings about rows; the first ones are kept word for word, all are counted.

    Args:
        shown: how many findings the error spells out.
    """

    def __init__(self, shown: int = 5) -> None:
        self.shown = shown
        self.count = 0
        self._first: list[str] = []

    def add(self, message: str) -> None:
        """Note one finding, ``file:line: what is wrong and what to do``."""
        self.count += 1
        if self.count <= self.shown:
            self._first.append(message)

    def raise_any(self, total: int) -> None:
        """Raise `DataError` if there were findings among ``total`` rows."""
        if not self.count:
            return
        lines = list(self._first)
        if self.count > self.shown:
            lines.append(f"... and {self.count - self.shown} more")
        if self.count > 1:
            lines.append(f"{self.count} of {total} rows cannot be used.")
        raise DataError("\n".join(lines))
