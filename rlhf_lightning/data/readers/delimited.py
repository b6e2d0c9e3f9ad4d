"""How a table of text is written: what separates its cells, and what its first line names."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from rlhf_lightning.errors import DataError

_DELIMITERS = ",;\t|"
_INDEX = re.compile(r"Unnamed: 0(\.\d+)*")  # how pandas calls its index when it reads what it wrote


def delimiter_of(header: str, known: Collection[str]) -> str:
    """What separates the cells of a header line: what makes most known names of it, else most cells; else a comma.

    >>> delimiter_of("prompt;a, b;completion", {"prompt", "completion"})
    ';'
    """

    def found(delimiter: str) -> tuple[int, int]:
        names = names_of(header, delimiter)
        return sum(name in known for name in names), len(names)

    return max(_DELIMITERS, key=found)


def names_of(header: str, delimiter: str) -> list[str]:
    """The names in a header line; none where its quotes are broken."""
    try:
        return [name.strip() for name in next(csv.reader([header], delimiter=delimiter, strict=True), [])]
    except csv.Error:
        return []


def is_header(line: str, known: Collection[str]) -> bool:
    """Whether a line could be the header of a table of rows: it names a known column."""
    return any(name in known for name in names_of(line, delimiter_of(line, known)))


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise `DataError` for columns without a name, or with the same."""
    bad = sorted({name for name in names if names.count(name) > 1 or not name})
    if bad:
        raise DataError(f"{path}:1: column names must differ and not be empty; look at {bad}.")


def is_index(name: str, place: int) -> bool:
    """Whether a column is the index that pandas writes first, without a name."""
    return place == 0 and (not name or _INDEX.fullmatch(name) is not None)
