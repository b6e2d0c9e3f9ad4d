"""CSV files and their kin: a header, then one row after the other; what cannot be read is named by its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from rlhf_lightning.data.readers.delimited import check_names, delimiter_of, is_index
from rlhf_lightning.data.readers.lines import MAX_LINE_BYTES, decode, raw_lines
from rlhf_lightning.data.readers.problems import BadRow, Problems
from rlhf_lightning.data.rows.keys import ROW_KEYS
from rlhf_lightning.errors import DataError


def csv_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line the row starts at, row) of each row, all cells as text; those that cannot be read go to ``problems``.

    The delimiter (comma, semicolon, tab or ``|``) is found in the header, or in a line ``sep=;`` before it. A first
    column without a name that counts the rows (pandas' index) and empty last columns without a name are left out.

    Raises:
        DataError: the header cannot be read.
    """
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        yield from _rows(path, problems)
    finally:
        csv.field_size_limit(limit)


def _rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    faults: list[tuple[int, BadRow]] = []  # of the lines of the row that is being read
    lines = _text_lines(path, faults)
    blank, first = 0, next(lines, "")
    while first and not first.strip():
        blank, first = blank + 1, next(lines, "")
    delimiter = delimiter_of(first.rstrip("\r\n"), ROW_KEYS)
    if first.lower().startswith("sep=") and len(first.strip()) <= 5:
        blank, delimiter, first = blank + 1, first[4:5].strip("\r\n") or "\t", next(lines, "")
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header: _Header | None = None
    for start, cells in _cells(reader, faults):
        start += blank
        if not faults and not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _Header(path, cells, faults, delimiter)
            continue
        try:
            row = header.row(cells, faults)
        except BadRow as bad:
            line = faults[0][0] if faults else start
            # A quote that is never closed swallows the rows after it: all the lines count.
            problems.add_bad(path, line, bad, rows=1 if cells else reader.line_num + blank - start + 1)
            faults.clear()
            continue
        yield start, row


def _cells(reader: Any, faults: list[tuple[int, BadRow]]) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of each row; no cells, but a fault, where the quotes are broken."""
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = []
            faults.append((start, BadRow(f"broken CSV: {error}; check the quotes of this row")))
        yield start, cells


def _text_lines(path: Path, faults: list[tuple[int, BadRow]]) -> Iterator[str]:
    """Lines as text; where one cannot be read, a stand-in and an entry in ``faults``."""
    for number, raw in raw_lines(path):
        try:
            text = decode(raw)
            if "\x00" in text:
                raise BadRow("NUL character; remove it", text.index("\x00") + 1)
        except BadRow as bad:
            faults.append((number, bad))
            stand_in = raw if len(raw) <= MAX_LINE_BYTES else b""
            text = stand_in.decode("utf-8", errors="replace").replace("\x00", "\ufffd")
        yield text + "\n"


class _Header:
    """The column names, and cells as rows under them."""

    def __init__(self, path: Path, cells: list[str], faults: list[tuple[int, BadRow]], delimiter: str) -> None:
        for line, bad in faults:
            raise DataError(f"{path}:{line}: {bad}.")
        self._cells, self._delimiter, self._count = cells, delimiter, 0
        names = [cell.strip() for cell in cells]
        while len(names) > 1 and not names[-1]:
            names.pop()
        self._index = len(names) > 1 and is_index(names[0], 0)
        self._names = names[1:] if self._index else names
        check_names(path, self._names)
        self._width = len(names)

    def row(self, cells: list[str], faults: list[tuple[int, BadRow]]) -> dict[str, Any]:
        """The row.

        Raises:
            BadRow: a fault of its lines, or cells that do not fit.
        """
        for _, bad in faults:
            raise bad
        if cells == self._cells and len(cells) > 1:
            raise BadRow("is the header once more (two files in one?); delete the line")
        if any(cell.strip() for cell in cells[self._width :]) or len(cells) < self._width:
            quote = {",": "commas", ";": "semicolons", "\t": "tabs"}.get(self._delimiter, f"'{self._delimiter}'")
            raise BadRow(f"{len(cells)} cells under {self._width} column names; quote cells that hold {quote}")
        if self._index:
            first, *cells = cells
            if not first.strip().isdigit():
                raise BadRow("the first column has no name, and is not the number of the row; give it a name")
        return dict(zip(self._names, cells, strict=False))
