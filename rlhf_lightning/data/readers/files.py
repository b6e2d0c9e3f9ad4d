"""Read the rows of files and data sets, each with the place it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_lightning.data.readers.arrow import HUB, arrow_rows, dataset_rows, parquet_rows
from rlhf_lightning.data.readers.csv_files import csv_rows
from rlhf_lightning.data.readers.delimited import is_header
from rlhf_lightning.data.readers.json_values import json_rows, spans_lines
from rlhf_lightning.data.readers.jsonl import jsonl_rows
from rlhf_lightning.data.readers.places import PACKINGS, PLAIN, sources
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.data.readers.streams import head, is_packed
from rlhf_lightning.data.rows.keys import ROW_KEYS
from rlhf_lightning.errors import DataError, TemplateFault

if TYPE_CHECKING:  # which needs torch, and a file can be checked without it
    from rlhf_lightning.types import Row

Reader = Callable[[Path, Problems], Iterator[tuple[Any, ...]]]  # gives (line, row) or (line, row, number)
_NO_NUMBER = (0,)
_HEAD = 2**16  # bytes that are looked at


class LocatedRow(NamedTuple):
    """A row and where it stands, for error messages."""

    row: Row
    file: str
    line: int  # of its beginning; in parquet files and data sets the number of the row
    number: int = 0  # of the row, in files where several stand on a line; 1 is the first

    @property
    def where(self) -> str:
        """``file:line``, and the number of the row where there is one."""
        return f"{self.file}:{self.line} (row {self.number})" if self.number else f"{self.file}:{self.line}"


@contextmanager
def located(row: LocatedRow) -> Iterator[None]:
    """Put ``file:line:`` in front of any `DataError` raised inside."""
    try:
        yield
    except DataError as error:
        kind = TemplateFault if isinstance(error, TemplateFault) else DataError
        raise kind(f"{row.where}: {error}") from error


def read_rows(path: str | Path) -> list[LocatedRow]:
    """All rows of a file, folder or data set; see `iter_rows`.

    Raises:
        DataError: also for rows that cannot be read; names file, line and column.
    """
    problems = Problems()
    rows = list(iter_rows(path, problems))
    problems.raise_above(0, len(rows))
    return rows


def iter_rows(path: str | Path, problems: Problems) -> Iterator[LocatedRow]:
    """The rows of a file, of all files in a folder or of a pattern (``'shards/train-*.parquet'``), in order of names.

    What a file is is told by its first bytes: JSON Lines, a JSON list, objects over several lines, tables with a header
    (CSV, tab or semicolon), parquet, Arrow; packed by gzip, bzip2, xz or zstd; UTF-8, UTF-16 or UTF-32, with or without
    byte order mark. A folder that ``save_to_disk`` of datasets wrote, and ``hf:NAME``, ``hf:NAME:SPLIT`` or
    ``hf:NAME:CONFIG:SPLIT`` (on the hub) are read with datasets. Only a piece of a file is in memory at a time.

    Args:
        path: what to read.
        problems: collects the rows that cannot be read.

    Raises:
        DataError: no such file, another format, a file without rows, or a package that is not installed.
    """
    for file in sources(Path(path)):
        name, before, found = str(file), problems.count, False
        for line, row, *number in _reader(file)(file, problems):
            found = True
            yield tuple.__new__(LocatedRow, (row, name, line, *(number or _NO_NUMBER)))
        if not found and problems.count == before:
            size = f" ({file.stat().st_size} bytes)" if file.is_file() else ""
            raise DataError(f"{path}: the file has no rows{size}; write at least one.")


def _reader(path: Path) -> Reader:
    if str(path).startswith(HUB) or path.is_dir():
        return dataset_rows
    first = head(path, _HEAD)
    for magics, reader in (((b"PAR1",), parquet_rows), ((b"ARROW1", b"\xff\xff\xff\xff"), arrow_rows)):
        if first.startswith(magics):
            if is_packed(path):
                raise DataError(f"{path}: is packed once more than its format asks for; unpack it.")
            return reader
    suffix = next((s.lower() for s in reversed(path.suffixes) if s.lower() not in PACKINGS), "")
    if suffix in (".parquet", ".arrow"):
        return parquet_rows if suffix == ".parquet" else arrow_rows  # which say what is wrong with it
    text = first.decode("utf-8", errors="ignore").lstrip("\ufeff \t\r\n")
    start = text.split("\n", 1)[0].rstrip("\r")
    if suffix not in (".csv", ".tsv") or text[:1] == "{":
        if text[:1] == "[" or (text[:1] == "{" and spans_lines(text, len(first) < _HEAD)):
            return json_rows
        if text[:1] == "{":
            return jsonl_rows
    if suffix in (".csv", ".tsv") or (text and is_header(start, ROW_KEYS)):
        return csv_rows
    if suffix in PLAIN:
        return jsonl_rows  # which names the lines that are none
    formats = f"{', '.join(PLAIN[:-1])} or {PLAIN[-1]}"
    raise DataError(f"{path}: unknown format '{suffix}'; write the rows as {formats} (.jsonl: one object a line).")
