"""Parquet and Arrow files, and Hugging Face datasets; rows are named by their number, 1 is the first.

Neither pyarrow nor datasets is a requirement of this library; without them these sources are refused with advice.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from rlhf_lightning.data.readers.delimited import check_names
from rlhf_lightning.data.readers.jsonl import check_depth, strings
from rlhf_lightning.data.readers.problems import BadRow, Problems
from rlhf_lightning.data.readers.streams import EXTRA
from rlhf_lightning.errors import DataError

HUB = "hf:"
_AT_ONCE = 1000  # rows that are in memory twice


def parquet_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of each row; those with text that is no text go to ``problems``.

    Raises:
        DataError: pyarrow is not installed, or the file is not parquet.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: parquet needs pyarrow; {EXTRA}, or write the rows as .jsonl.") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_names(path, file.schema_arrow.names)
            yield from _table_rows(path, file.iter_batches(batch_size=_AT_ONCE), problems)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {_first_line(error)}") from error


def arrow_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same for an Arrow file or stream, as datasets writes them.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be read.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise DataError(f"{path}: Arrow files need pyarrow; {EXTRA}, or write the rows as .jsonl.") from None
    try:
        with pyarrow.memory_map(str(path)) as file:
            if file.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(file)
                batches: Iterable[Any] = map(reader.get_batch, range(reader.num_record_batches))
            else:
                file.seek(0)
                batches = reader = pyarrow.ipc.open_stream(file)
            check_names(path, reader.schema.names)
            yield from _table_rows(path, batches, problems)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Arrow: {_first_line(error)}") from error


def dataset_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same for a folder that ``save_to_disk`` wrote, or a name on the hub, see `hub_parts`.

    Raises:
        DataError: datasets is not installed, there is no such data set, or it has several splits and none was named.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise DataError(f"{path}: needs datasets; {EXTRA}, or write the rows as .jsonl.") from None
    try:
        if str(path).startswith(HUB):
            name, config, split = hub_parts(str(path))
            dataset = datasets.load_dataset(name, config, split=split)
        else:
            dataset = datasets.load_from_disk(path)
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be loaded: {_first_line(error)}") from error
    if isinstance(dataset, dict):
        raise DataError(f"{path}: holds the splits {', '.join(sorted(dataset))}; name the folder of one of them.")
    tables = dataset.with_format("arrow").iter(batch_size=_AT_ONCE)
    yield from _table_rows(path, (batch for table in tables for batch in table.to_batches()), problems)


def hub_parts(text: str) -> tuple[str, str | None, str]:
    """Name, config and split of ``hf:NAME``, ``hf:NAME:SPLIT`` or ``hf:NAME:CONFIG:SPLIT``.

    Raises:
        DataError: more parts, or no name.

    >>> hub_parts("hf:owner/rows"), hub_parts("hf:owner/rows:en:test")
    (('owner/rows', None, 'train'), ('owner/rows', 'en', 'test'))
    """
    name, *rest = text.removeprefix(HUB).split(":")
    if not name or len(rest) > 2:
        raise DataError(f"{text}: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT.")
    return name, (rest[0] or None) if len(rest) == 2 else None, rest[-1] if rest and rest[-1] else "train"


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of datasets wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _table_rows(path: Path, batches: Iterable[Any], problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in batches:
        for row in _python_rows(batch):
            number += 1
            try:
                yield number, _checked(row)
            except BadRow as bad:
                problems.add_bad(path, number, bad)


def _python_rows(batch: Any) -> list[Any]:
    """Rows as dicts; the error in place of those that hold bytes which are not UTF-8, or one key twice."""
    try:
        return list(batch.to_pylist(maps_as_pydicts="strict"))
    except (UnicodeDecodeError, KeyError) as error:
        if len(batch) == 1:
            return [error]
        return [row for index in range(len(batch)) for row in _python_rows(batch.slice(index, 1))]


def _checked(row: Any) -> dict[str, Any]:
    if isinstance(row, UnicodeDecodeError):
        raise BadRow(f"byte 0x{row.object[row.start]:02x} is not UTF-8; save the text as UTF-8")
    if isinstance(row, KeyError):
        raise BadRow("a key of a map is there more than once; keep one")
    row = _as_json(row)
    check_depth(row)
    if any("\x00" in text for text in strings(row)):
        raise BadRow("NUL character; remove it")
    return row


def _as_json(value: Any) -> Any:
    """The value as a JSON file would hold it: times as ISO text, decimals as numbers, bytes as text, else in base64."""
    if isinstance(value, dict):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner) for inner in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, bytes):
        text = value.decode("utf-8", errors="replace")
        return text if text.encode() == value and "\x00" not in text else b64encode(value).decode("ascii")
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
