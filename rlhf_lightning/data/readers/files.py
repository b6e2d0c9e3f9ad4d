"""Read the rows of files and data sets, each with the place it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_lightning.data.readers.arrow import HUB, dataset_rows, is_saved_dataset, parquet_rows
from rlhf_lightning.data.readers.csv_files import csv_rows
from rlhf_lightning.data.readers.jsonl import jsonl_rows
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.errors import DataError, TemplateFault

if TYPE_CHECKING:  # which needs torch, and a file can be checked without it
    from rlhf_lightning.types import Row

Reader = Callable[[Path, Problems], Iterator[tuple[int, dict[str, Any]]]]
_READERS: dict[str, Reader] = {".jsonl": jsonl_rows, ".csv": csv_rows, ".parquet": parquet_rows}

ROW_FILES = (*_READERS, ".arrow")
"""Suffixes of the files in a folder that hold its rows."""


class LocatedRow(NamedTuple):
    """A row and where it stands, for error messages."""

    row: Row
    file: str
    line: int  # of its beginning; in parquet files and data sets the number of the row

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"


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
    """The rows of a ``.jsonl``, ``.csv`` or ``.parquet`` file, or of every such file in a folder, in order of names.

    A byte order mark, CRLF line ends and blank lines are accepted. In CSV files the cells of ``messages``,
    ``completions`` and ``ranks`` are read as JSON, and so are ``prompt``, ``completion``, ``chosen`` and ``rejected``
    where they hold a list of messages; ``margin`` is read as a number, every other cell stays text. A folder that
    ``save_to_disk`` of datasets wrote and ``hf:NAME`` or ``hf:NAME:SPLIT`` (on the hub) are read with datasets.

    Args:
        path: what to read.
        problems: collects the rows that cannot be read.

    Raises:
        DataError: no such file, another format, a file without rows, or a package that is not installed.
    """
    for file, reader in _readers(Path(path)):
        name, before, found = str(file), problems.count, False
        for line, row in reader(file, problems):
            found = True
            yield LocatedRow(row, name, line)
        if not found and problems.count == before:
            size = f" ({file.stat().st_size} bytes)" if file.is_file() else ""
            raise DataError(f"{path}: the file has no rows{size}; write at least one.")


def _readers(path: Path) -> list[tuple[Path, Reader]]:
    formats = f"{', '.join(list(_READERS)[:-1])} or {list(_READERS)[-1]}"
    if str(path).startswith(HUB) or is_saved_dataset(path):
        return [(path, dataset_rows)]
    if path.is_dir():
        found = [(file, _READERS.get(file.suffix.lower())) for file in sorted(path.iterdir())]
        files = [(file, reader) for file, reader in found if reader is not None]
        if not files:
            raise DataError(f"{path}: the folder holds no {formats} file.")
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path (relative paths start at {Path.cwd()}).")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: unknown format '{path.suffix}'; write the rows as {formats} (.jsonl: one object a line)."
        )
    return [(path, reader)]
