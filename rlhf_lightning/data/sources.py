"""Read JSONL and CSV files line by line; whatever cannot be read is named by file, line and column."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rlhf_lightning.data.problems import Problems
from rlhf_lightning.errors import DataError
from rlhf_lightning.types import Row

MAX_LINE_BYTES = 64 * 2**20  # a longer line is a broken file, and reading it would need unbounded memory
_SUFFIXES = (".jsonl", ".csv")
_LISTS = ("messages", "completions", "ranks")  # CSV columns that hold JSON
_MAYBE_MESSAGES = ("prompt", "completion", "chosen", "rejected")  # CSV columns that may hold a JSON list of messages
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclass(frozen=True)
class LocatedRow:
    """A row and where it stands, for error messages."""

    row: Row
    file: str
    line: int

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"


class _BadLine(Exception):
    def __init__(self, column: int, reason: str) -> None:
        super().__init__(reason)
        self.column = column


@contextmanager
def located(row: LocatedRow) -> Iterator[None]:
    """Put ``file:line:`` in front of any `DataError` raised inside."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error


def read_rows(path: str | Path) -> list[LocatedRow]:
    """All rows of a ``.jsonl`` or ``.csv`` file, or of every such file in a folder, in the order of their names.

    A byte order mark, CRLF line ends and blank lines are accepted. In CSV files the cells of ``messages``,
    ``completions`` and ``ranks`` are read as JSON, and so are ``prompt``, ``completion``, ``chosen`` and ``rejected``
    where they hold a list of messages; ``margin`` is read as a number, every other cell stays text.

    Raises:
        DataError: no such file, another format, or lines that cannot be read; names file, line and column.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
        if not files:
            raise DataError(f"{path}: the folder holds no .jsonl or .csv file.")
        return [row for file in files for row in read_rows(file)]
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"{path}: unknown format '{path.suffix}'; write the rows as .jsonl (one object a line) or .csv."
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path (relative paths start at {Path.cwd()}).")
    rows = _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_csv(path)
    if not rows:
        raise DataError(f"{path}: the file has no rows ({path.stat().st_size} bytes); write at least one.")
    return rows


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                if len(raw) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes; split or shorten the row."
                    )
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode("utf-8")) + 1
        raise _BadLine(column, f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8") from error


# ---------------------------------------------------------------------------------------------------------- JSONL


def _read_jsonl(path: Path) -> list[LocatedRow]:
    rows: list[LocatedRow] = []
    problems = Problems()
    total = 0
    for number, raw in _raw_lines(path):
        if not raw.strip():
            continue
        total += 1
        try:
            rows.append(LocatedRow(_parse_object(_decode(raw).rstrip("\r\n")), str(path), number))
        except _BadLine as bad:
            problems.add(f"{path}:{number}:{bad.column}: {bad}.")
    problems.raise_any(total)
    return rows


def _parse_object(line: str) -> dict[str, Any]:
    value = _parse_json(line)
    if not isinstance(value, dict):
        advice = "write one object { } a line, not one list for the whole file" if isinstance(value, list) else ""
        raise _BadLine(1, f"the line is a {type(value).__name__}, not an object; {advice or 'write a row as {...}'}")
    return value


def _parse_json(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _BadLine(error.colno, _explain(text, error)) from error
    except RecursionError as error:
        raise _BadLine(1, "lists or objects are nested too deeply; a row is flat") from error
    except ValueError as error:  # a number with thousands of digits, NaN
        raise _BadLine(1, f"a value cannot be read: {error}") from error
    if "\\u" in text:
        _check_escapes(text, value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null or leave the field out")


def _explain(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data":
        rest = text[error.pos :].strip()
        return "remove the comma after the object" if rest == "," else "more than one value; write one object a line"
    before = text[: error.pos].rstrip()
    if before.endswith(",") and text[error.pos : error.pos + 1] in "}]":
        return "broken JSON: trailing comma; remove it"
    if "\x00" in text[error.pos : error.pos + 1]:
        return "NUL character; remove it"
    return f"broken JSON: {error.msg[0].lower()}{error.msg[1:]}"


def _check_escapes(text: str, value: Any) -> None:
    """Refuse strings that cannot be written as UTF-8 or hold NUL; both reach a value only through an escape."""
    for part in _strings(value):
        if "\x00" in part:
            raise _BadLine(text.find("\\u0000") + 1, "NUL character; remove it")
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            column = _lone_surrogate(text) + 1
            raise _BadLine(column, "lone surrogate (half of an emoji?); remove it or write both halves") from error


def _strings(value: Any) -> Iterator[str]:
    open_values = [value]
    while open_values:
        current = open_values.pop()
        if isinstance(current, str):
            yield current
        elif isinstance(current, dict):
            open_values += [*current.keys(), *current.values()]
        elif isinstance(current, list):
            open_values += current


def _lone_surrogate(text: str) -> int:
    high: re.Match[str] | None = None
    for match in _UNICODE_ESCAPE.finditer(text):
        code = int(match[1], 16)
        if high is not None and not (0xDC00 <= code <= 0xDFFF and match.start() == high.end()):
            return high.start()
        if high is None and 0xDC00 <= code <= 0xDFFF:
            return match.start()
        high = match if 0xD800 <= code <= 0xDBFF else None
    return high.start() if high is not None else 0


# ------------------------------------------------------------------------------------------------------------ CSV


def _read_csv(path: Path) -> list[LocatedRow]:
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        return _csv_rows(path)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(path: Path) -> list[LocatedRow]:
    reader = csv.reader(_text_lines(path), strict=True)
    header: list[str] | None = None
    rows: list[LocatedRow] = []
    problems = Problems()
    line = total = 0
    try:
        for cells in reader:
            start, line = line + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _header(path, cells)
                continue
            total += 1
            try:
                rows.append(LocatedRow(_csv_row(header, cells), str(path), start))
            except _BadLine as bad:
                problems.add(f"{path}:{start}: {bad}.")
    except csv.Error as error:
        raise DataError(f"{path}:{line + 1}: broken CSV: {error}; check the quotes of this row.") from error
    problems.raise_any(total)
    return rows


def _text_lines(path: Path) -> Iterator[str]:
    for number, raw in _raw_lines(path):
        try:
            text = _decode(raw)
        except _BadLine as bad:
            raise DataError(f"{path}:{number}:{bad.column}: {bad}.") from bad
        if "\x00" in text:
            raise DataError(f"{path}:{number}:{text.index(chr(0)) + 1}: NUL character; remove it.")
        yield text


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    bad = sorted({name for name in names if names.count(name) > 1 or not name})
    if bad:
        raise DataError(f"{path}:1: column names must differ and not be empty; look at {bad}.")
    return names


def _csv_row(header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise _BadLine(1, f"{len(cells)} cells under {len(header)} column names; quote cells that hold commas")
    return {name: _cell(name, text) for name, text in zip(header, cells, strict=True)}


def _cell(name: str, text: str) -> Any:
    if name in _LISTS and text.strip():
        try:
            return _parse_json(text)
        except _BadLine as bad:
            raise _BadLine(1, f"{name}: must be a JSON list such as [1, 2]; {bad}") from bad
    if name in _MAYBE_MESSAGES and text.lstrip().startswith("["):
        return _messages_or_text(text)
    if name == "margin":
        return _number_or_text(text)
    return text


def _messages_or_text(text: str) -> Any:
    try:
        value = _parse_json(text)
    except _BadLine:
        return text
    return value if value and all(isinstance(turn, dict) and "role" in turn for turn in value) else text


def _number_or_text(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text  # the validator names the field
