"""A record as JSON lines, and JSON lines back into a record."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rlhf_lightning.data.readers.files import located, read_rows
from rlhf_lightning.errors import DataError, DiskError
from rlhf_lightning.people import record
from rlhf_lightning.people.entries import Entry, data_of
from rlhf_lightning.people.form import LONGEST_TIME, competition, is_key, is_note, name_of, whole
from rlhf_lightning.people.judgements import Item
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.votes import POLICIES

_LISTS = {"ranks", "order", "ratings"}
_NEEDED = ("key", "kind", "item", "annotator", "order", "seconds", "data", "number")
_KEPT = tuple(field.name for field in fields(Entry))


def exported(path: str | Path) -> Iterator[dict[str, Any]]:
    """One row per line of the record, those that were taken back as well, with the item that was judged.

    Where policies are known, as in the arena, a column says which one wrote each answer.

    Raises:
        DataError: see `record.entries`.
    """
    items = {item.number: item for item in record.items(path)}
    for entry in record.entries(path):
        shown = items[entry.item]
        told = {name: getattr(entry, name) for name in _KEPT}
        authors = {name: shown.row[name] for name in (POLICIES,) if name in shown.row}
        yield told | {"prompt": shown.prompt, "completions": list(shown.completions)} | authors


def import_into(target: Record, path: str | Path) -> tuple[int, int]:
    """Add the lines of an export to a record of the same candidates; returns how many are new, and how many were there.

    All of them are added, or none.

    Raises:
        DataError: a line is no line of an export, or judges an item that is not in the record; names file and line.
        DiskError: the disk does not take it.
    """
    items = {item.number: (item, data_of(item)) for item in target.items()}
    there: dict[int, Entry] = {}  # by the number in the file: the line here
    undone = {entry.takes_back: entry for entry in target.entries() if entry.kind == "undo"}
    added = 0
    try:
        with target.writing():
            for row in read_rows(path):
                with located(row):
                    entry = _entry(row.row)
                    item, data = items.get(entry.item, (None, ""))
                    if item is None or data != entry.data:
                        raise DataError(
                            f"item {entry.item}: other candidates were judged; import into a record of those"
                        )
                    _check(entry, item)
                    number, line = entry.number, _renumbered(entry, there)
                    if line.takes_back in undone and line.kind == "undo":
                        kept, new = undone[line.takes_back], False  # somebody took it back here as well
                    else:
                        kept, new = target.add(line)
                        if not new and not kept.same_as(line):
                            raise DataError(f"key {line.key}: stands for another judgement in {target.path}")
                    there[number] = kept
                    undone |= {kept.takes_back: kept} if kept.kind == "undo" else {}
                    added += new
    except sqlite3.Error as error:
        raise DiskError(f"{target.path}: cannot be written ({error}); nothing was added. Free the disk") from error
    return added, len(there) - added


def _renumbered(entry: Entry, there: dict[int, Entry]) -> Entry:
    """The same line with the number here of what it takes back."""
    if entry.takes_back is None:
        return entry
    if (back := there.get(entry.takes_back)) is None:
        raise DataError(f"takes_back: line {entry.takes_back} is not in the file before it")
    if back.kind == "undo" or (back.annotator, back.item) != (entry.annotator, entry.item):
        raise DataError(f"takes_back: line {entry.takes_back} is no judgement of item {entry.item} by this person")
    return replace(entry, takes_back=back.number)


def _entry(row: Any) -> Entry:
    if missing := [name for name in _NEEDED if name not in row]:
        raise DataError(f"{missing[0]}: is missing; this is no line that `rlhf-lightning label export` wrote")
    values = {name: row[name] for name in _KEPT if name in row}
    for name in _LISTS & set(values):
        if not isinstance(values[name], list | None):
            raise DataError(f"{name}: is no list")
        values[name] = None if values[name] is None else tuple(values[name])
    if not all(isinstance(one, list) for one in values.get("flags") or ()):
        raise DataError("flags: is no list of lists")
    values["flags"] = tuple(tuple(one) for one in values.get("flags") or ())
    if not whole(values["item"]) or not whole(values["number"]):
        raise DataError("item, number: are no whole numbers")
    return Entry(**values)


def _check(entry: Entry, item: Item) -> None:
    """Look at what a line says as it is looked at when the page sends it, since a record forgets nothing.

    Raises:
        DataError: names the field.
    """
    count, ranks = len(item.completions), entry.ranks
    name_of(entry.annotator)
    seconds = isinstance(entry.seconds, int | float) and 0 <= entry.seconds <= LONGEST_TIME
    fits = {
        "kind": entry.kind in ("ranking", "skip", "undo"),
        "key": is_key(entry.key),
        "order": all(map(whole, entry.order or ())) and sorted(entry.order or ()) == list(range(count)),
        "ranks": (ranks is not None) == (entry.kind == "ranking"),
        "seconds": seconds,
        "ratings": _each(entry.ratings, count, lambda grade: grade is None or whole(grade)),
        "flags": _each(entry.flags, count, lambda names: all(map(is_note, names))),
        "strength": entry.strength is None or (whole(entry.strength) and 1 <= entry.strength <= 3),
        "note": is_note(entry.note),
        "at": isinstance(entry.at, str) and is_note(entry.at),
        "takes_back": (entry.takes_back is not None) == (entry.kind == "undo"),
        "showing": whole(entry.showing) and entry.showing >= 0,
        "schema": whole(entry.schema),
    }
    if ranks is not None:
        fits["ranks"] &= len(ranks) == count and all(map(whole, ranks)) and list(ranks) == competition(ranks)
    for name, sound in fits.items():
        if not sound:
            raise DataError(f"{name}: is not what `rlhf-lightning label export` writes for {count} answers")


def _each(values: Any, count: int, fits: Callable[[Any], bool]) -> bool:
    return isinstance(values, tuple) and (not values or (len(values) == count and all(map(fits, values))))
