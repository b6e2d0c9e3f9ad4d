"""CSV files: a header, then one row after the other; what cannot be read is named by the line it starts at."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.data.readers.jsonl import parse_json
from rlhf_lightning.data.readers.lines import MAX_LINE_BYTES, decode, raw_lines
from rlhf_lightning.data.readers.problems import BadRow, Problems
from rlhf_lightning.errors import DataError

_LISTS = ("messages", "completions", "ranks")  # columns that hold JSON
_MAYBE_MESSAGES = ("prompt", "completion", "chosen", "rejected")  # columns that may hold a JSON list of messages


def csv_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line the row starts at, row) of each row; those that cannot be read go to ``problems``.

    Raises:
        DataError: the header cannot be read.
    """
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        yield from _rows(path, problems)
    finally:
        csv.field_size_limit(limit)


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise `DataError` for columns without a name, or with the same."""
    bad = sorted({name for name in names if names.count(name) > 1 or not name})
    if bad:
        raise DataError(f"{path}:1: column names must differ and not be empty; look at {bad}.")


def _rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    faults: list[tuple[int, BadRow]] = []  # of the lines of the row that is being read
    reader = csv.reader(_text_lines(path, faults), strict=True)
    header: list[str] | None = None
    for start, cells in _cells(reader, faults):
        if not faults and not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(path, cells, faults)
            continue
        try:
            row = _row(header, cells, faults)
        except BadRow as bad:
            line = faults[0][0] if faults else start
            # A quote that is never closed swallows the rows after it: all the lines count.
            problems.add_bad(path, line, bad, rows=1 if cells else reader.line_num - start + 1)
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
        yield text


def _header(path: Path, cells: list[str], faults: list[tuple[int, BadRow]]) -> list[str]:
    for line, bad in faults:
        raise DataError(f"{path}:{line}: {bad}.")
    names = [cell.strip() for cell in cells]
    check_names(path, names)
    return names


def _row(header: list[str], cells: list[str], faults: list[tuple[int, BadRow]]) -> dict[str, Any]:
    for _, bad in faults:
        raise bad
    if len(cells) != len(header):
        raise BadRow(f"{len(cells)} cells under {len(header)} column names; quote cells that hold commas")
    return {name: _cell(name, text) for name, text in zip(header, cells, strict=True)}


def _cell(name: str, text: str) -> Any:
    if name in _LISTS and text.strip():
        try:
            return parse_json(text)
        except BadRow as bad:
            raise BadRow(f"{name}: must be a JSON list such as [1, 2]; {bad}") from bad
    if name in _MAYBE_MESSAGES and text.lstrip().startswith("["):
        return _messages_or_text(text)
    if name == "margin":
        return _number_or_text(text)
    return text


def _messages_or_text(text: str) -> Any:
    try:
        value = parse_json(text)
    except BadRow:
        return text
    return value if value and all(isinstance(turn, dict) and "role" in turn for turn in value) else text


def _number_or_text(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text  # the validator names the field
