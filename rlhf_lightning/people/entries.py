"""The lines of the record, as objects and as rows of its tables."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhf_lightning.people import schema
from rlhf_lightning.people.judgements import Item, Judgement

_COLUMNS = (
    "number, key, kind, item, annotator, ranks, places, seconds, ratings, flags, strength, note, at, takes_back,"
    " schema, data"
)
VALUES = f"{_COLUMNS}, showing"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the record: a ranking, a skip, or that one of these is taken back."""

    key: str  # made by the page; the same key again is the same line
    kind: Literal["ranking", "skip", "undo"]
    item: int
    annotator: str
    ranks: tuple[int, ...] | None  # [K] in the order of the completions
    order: tuple[int, ...]  # [K] the completion at each place of the page, from the top
    seconds: float
    ratings: tuple[int | None, ...] = ()
    flags: tuple[tuple[str, ...], ...] = ()
    strength: int | None = None
    note: str = ""
    at: str = ""  # UTC, ISO 8601; the record fills in what is empty, as it does below
    takes_back: int | None = None  # number of the line that an undo takes back
    showing: int = 0  # 1 where the person had judged the item before, to see whether they agree with themselves
    schema: int = 0
    data: str = ""
    number: int = 0  # of the line, from 1

    def same_as(self, other: Entry) -> bool:
        """Whether both say the same, whenever it was written."""
        ours, theirs = (
            replace(entry, number=0, at="", seconds=0.0, schema=0, data="", showing=0) for entry in (self, other)
        )
        return ours == theirs

    def judgement(self) -> Judgement:
        """What training reads of it."""
        return Judgement(self.number, self.item, self.annotator, self.ranks, self.order, self.seconds, self.at,
                         self.ratings, self.flags, self.strength, self.note)  # fmt: skip


def live(lines: Iterable[Entry]) -> list[Entry]:
    """The rankings and skips that were neither taken back nor replaced by a later one of the same showing."""
    lines = list(lines)
    back = {entry.takes_back for entry in lines if entry.kind == "undo"}
    last: dict[tuple[str, int, int], Entry] = {}
    for entry in lines:
        if entry.kind != "undo" and entry.number not in back:
            last[entry.annotator, entry.item, entry.showing] = entry
    return sorted(last.values(), key=lambda entry: entry.number)


def data_of(item: Item) -> str:
    """SHA-256 of what people are shown of an item."""
    return hashlib.sha256(as_json([item.prompt, item.completions]).encode("utf-8", "surrogatepass")).hexdigest()


def read_entries(connection: sqlite3.Connection) -> list[Entry]:
    """All lines by number; also of a file that was not yet brought to this version."""
    columns = VALUES if schema.version(connection) > 1 else f"{_COLUMNS}, 0"
    return [entry_of(row) for row in connection.execute(f"SELECT {columns} FROM judgements ORDER BY number")]


def read_items(connection: sqlite3.Connection) -> list[Item]:
    """All items by number."""
    found = connection.execute("SELECT number, prompt, completions, row FROM items ORDER BY number")
    return [item_of(*row) for row in found]


def item_of(number: int, prompt: str, completions: str, row: str) -> Item:
    """An item from the columns of its table."""
    columns: Mapping[str, Any] = json.loads(row)
    asked, answers = json.loads(prompt), json.loads(completions)
    return Item(number, asked, tuple(answers), {**columns, "prompt": asked, "completions": answers})


def entry_of(row: Sequence[Any]) -> Entry:
    """A line from `VALUES`."""
    (number, key, kind, item, annotator, ranks, places, seconds, ratings, flags, strength, note, at, takes_back,
     version, data, showing) = row  # fmt: skip
    return Entry(
        key, kind, item, annotator, None if ranks is None else tuple(json.loads(ranks)), tuple(json.loads(places)),
        seconds, tuple(json.loads(ratings)), tuple(tuple(names) for names in json.loads(flags)), strength, note, at,
        takes_back, showing, version, data, number,
    )  # fmt: skip


def values_of(entry: Entry) -> tuple[Any, ...]:
    """`VALUES` of a line that is to be added."""
    ranks = None if entry.ranks is None else as_json(entry.ranks)
    return (
        None, entry.key, entry.kind, entry.item, entry.annotator, ranks, as_json(entry.order), entry.seconds,
        as_json(entry.ratings), as_json(entry.flags), entry.strength, entry.note, entry.at, entry.takes_back,
        entry.schema, entry.data, entry.showing,
    )  # fmt: skip


def as_json(value: Any) -> str:
    """A value as it stands in a column."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
