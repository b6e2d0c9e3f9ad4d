"""A record as JSON lines, and JSON lines back into a record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from rlhf_lightning.data.readers.files import read_rows
from rlhf_lightning.errors import DataError
from rlhf_lightning.people import record
from rlhf_lightning.people.entries import Entry, data_of
from rlhf_lightning.people.record import Record

_LISTS = {"ranks", "order", "ratings"}
_KEPT = tuple(field.name for field in fields(Entry))


def exported(path: str | Path) -> Iterator[dict[str, Any]]:
    """One row per line of the record, those that were taken back as well, with the item that was judged.

    Raises:
        DataError: see `record.entries`.
    """
    items = {item.number: item for item in record.items(path)}
    for entry in record.entries(path):
        shown = items[entry.item]
        told = {name: getattr(entry, name) for name in _KEPT}
        yield told | {"prompt": shown.prompt, "completions": list(shown.completions)}


def import_into(target: Record, path: str | Path) -> tuple[int, int]:
    """Add the lines of an export to a record of the same candidates; returns how many are new, and how many were there.

    All of them are added, or none.

    Raises:
        DataError: a line is no line of an export, or judges an item that is not in the record; names file and line.
    """
    data = {item.number: data_of(item) for item in target.items()}
    numbers: dict[int, int] = {}  # of a line there: of the same line here
    added = known = 0
    with target.writing():
        for located in read_rows(path):
            try:
                entry = _entry(located.row)
                if data.get(entry.item) != entry.data:
                    raise DataError(f"item {entry.item}: other candidates were judged; import into a record of those")
                before = entry.number
                if entry.takes_back is not None:
                    entry = _renumbered(entry, numbers)
                there, new = target.add(entry)
                if not new and not there.same_as(entry):
                    raise DataError(f"key {entry.key}: stands for another judgement in {target.path}")
            except (DataError, TypeError, ValueError) as error:
                raise DataError(f"{located.where}: {error}") from error
            numbers[before] = there.number
            added, known = added + new, known + (not new)
    return added, known


def _renumbered(entry: Entry, numbers: dict[int, int]) -> Entry:
    if entry.takes_back not in numbers:
        raise DataError(f"takes_back: line {entry.takes_back} is not in the file before it")
    values = {name: getattr(entry, name) for name in _KEPT} | {"takes_back": numbers[entry.takes_back]}
    return Entry(**values)


def _entry(row: Any) -> Entry:
    if missing := [
        name for name in ("key", "kind", "item", "annotator", "order", "seconds", "data") if name not in row
    ]:
        raise DataError(f"{missing[0]}: is missing; this is no line that `rlhf-lightning label export` wrote")
    values = {name: row[name] for name in _KEPT if name in row}
    for name in _LISTS & set(values):
        values[name] = None if values[name] is None else tuple(values[name])
    values["flags"] = tuple(tuple(one) for one in values.get("flags") or ())
    return Entry(**values)
