"""The record: one SQLite file with all that people said, to which lines are only added."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.places import lock
from rlhf_lightning.errors import DataError, DiskError
from rlhf_lightning.people import schema
from rlhf_lightning.people.entries import (
    VALUES,
    Entry,
    as_json,
    data_of,
    entry_of,
    item_of,
    live,
    read_entries,
    read_items,
    values_of,
)  # fmt: skip
from rlhf_lightning.people.judgements import Item, Judgement

_SOURCE = "candidates"  # in the table of single values: the digest of their file


class Record:
    """A record that this process writes, and nobody else. Threads may share it.

    Args:
        path: the file, which is made if it is not there.
        candidates: the items that people are to rank, or what reads them; None takes those that are in the file.
        source: SHA-256 of the file of the candidates. Where the record was last opened with it, they are not read.
        seed: of all that is drawn for this record; None takes that of the file, 0 for a new one.

    Raises:
        DataError: the file is something else, or a record of other candidates or of another seed.
        CheckpointError: another process writes it.
        DiskError: the disk does not take it.
    """

    def __init__(
        self,
        path: str | Path,
        candidates: Sequence[Item] | Callable[[], Sequence[Item]] | None = None,
        seed: int | None = None,
        source: str = "",
    ) -> None:
        self.path = Path(path).resolve()
        self._turn = threading.RLock()
        with ExitStack() as stack:
            if not self.path.exists():
                if candidates is None:
                    schema.check_ours(self.path)  # says how one is made
                if callable(candidates):
                    candidates = candidates()  # before anything is made
                self.path.parent.mkdir(parents=True, exist_ok=True)
            else:
                schema.check_ours(self.path)
            stack.enter_context(lock(self.path))
            if not self.path.exists():
                schema.create(self.path)
            schema.check_ours(self.path)
            self._connection = stack.enter_context(closing(schema.open_for_writing(self.path)))
            try:
                schema.migrate(self._connection, self.path)
                with self.writing():
                    self.seed = self._keep_seed(seed)
                    if candidates is not None and not self._is_from(source):
                        self._keep_items(candidates() if callable(candidates) else candidates)
                        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_SOURCE, source))
            except sqlite3.OperationalError as error:
                raise DiskError(f"{self.path}: cannot be written ({error}); free the disk") from error
            except sqlite3.DatabaseError as error:
                raise DataError(f"{self.path}: is damaged ({error}); take a copy from before") from error
            self._open = stack.pop_all()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have the file. What was written is on the disk already."""
        with self._turn:
            self._open.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction at a time: what is written inside is on the disk afterwards, or none of it is.

        Inside of another one of the same thread it is a part of that.
        """
        with self._turn, ExitStack() as stack:
            if not self._connection.in_transaction:
                stack.enter_context(schema.transaction(self._connection))
            yield self._connection

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The answer to a query."""
        with self._turn:
            return self._connection.execute(query, values).fetchall()

    def add(self, entry: Entry) -> tuple[Entry, bool]:
        """Write a line; returns it as it stands in the record, and whether it is new.

        A key that is there already writes nothing and returns its line, whatever the rest says: compare them with
        `Entry.same_as`.

        Raises:
            DataError: the item is not in the record.
            sqlite3.Error: the disk does not take it; nothing is written.
        """
        with self.writing() as connection:
            if found := connection.execute(f"SELECT {VALUES} FROM judgements WHERE key = ?", (entry.key,)).fetchone():
                return entry_of(found), False
            data = connection.execute("SELECT data FROM items WHERE number = ?", (entry.item,)).fetchone()
            if data is None:
                raise DataError(f"item {entry.item}: is not in {self.path}")
            _add_annotator(connection, entry.annotator)
            at = entry.at or datetime.now(UTC).isoformat(timespec="milliseconds")
            entry = replace(entry, at=at, schema=entry.schema or schema.VERSION, data=data[0])
            marks = ", ".join("?" * (VALUES.count(",") + 1))
            cursor = connection.execute(f"INSERT INTO judgements ({VALUES}) VALUES ({marks})", values_of(entry))
            return replace(entry, number=int(cursor.lastrowid or 0)), True

    def add_item(self, prompt: Any, completions: Sequence[Any], columns: Mapping[str, Any]) -> Item:
        """Write an item that nobody has been asked about yet; its number is the next one.

        Args:
            prompt: a text, or messages.
            completions: its answers.
            columns: what else is to be known of it; the page gets none of them.

        Raises:
            sqlite3.Error: the disk does not take it; nothing is written.
        """
        with self.writing() as connection:
            number = int(connection.execute("SELECT COALESCE(MAX(number), 0) + 1 FROM items").fetchone()[0])
            row = {**columns, "prompt": prompt, "completions": list(completions)}
            _add_item(connection, item := Item(number, prompt, tuple(completions), row))
        return item

    def by_key(self, key: str) -> Entry | None:
        """The line that has a key, None if there is none."""
        found = self.rows(f"SELECT {VALUES} FROM judgements WHERE key = ?", (key,))
        return entry_of(found[0]) if found else None

    def line(self, number: int) -> Entry | None:
        """One line by its number, None if there is none."""
        found = self.rows(f"SELECT {VALUES} FROM judgements WHERE number = ?", (number,))
        return entry_of(found[0]) if found else None

    def last(self, annotator: str) -> Entry | None:
        """What a person wrote last, None if they wrote nothing."""
        query = f"SELECT {VALUES} FROM judgements WHERE annotator = ? ORDER BY number DESC LIMIT 1"
        found = self.rows(query, (annotator,))
        return entry_of(found[0]) if found else None

    def written(self) -> int:
        """The number of the last line, 0 if there is none."""
        return int(self.rows("SELECT coalesce(max(number), 0) FROM judgements")[0][0])

    def entries(self) -> list[Entry]:
        """All lines, in the order in which they were written."""
        with self._turn:
            return read_entries(self._connection)

    def items(self) -> list[Item]:
        """All items, by number."""
        with self._turn:
            return read_items(self._connection)

    def data(self) -> str:
        """SHA-256 of what people are shown of all items."""
        shown = self.rows("SELECT data FROM items ORDER BY number")
        return hashlib.sha256("".join(data for (data,) in shown).encode()).hexdigest()

    def item(self, number: int) -> Item | None:
        """One item, None if there is none of this number."""
        found = self.rows("SELECT number, prompt, completions, row FROM items WHERE number = ?", (number,))
        return item_of(*found[0]) if found else None

    def _keep_seed(self, seed: int | None) -> int:
        found = self._connection.execute("SELECT value FROM meta WHERE name = 'seed'").fetchone()
        if found is None:
            self._connection.execute("INSERT INTO meta VALUES ('seed', ?)", (str(seed or 0),))
            return seed or 0
        if seed is not None and seed != int(found[0]):
            raise DataError(f"{self.path}: was begun with seed {found[0]}; leave --seed out, or name another record")
        return int(found[0])

    def _is_from(self, source: str) -> bool:
        found = self._connection.execute("SELECT value FROM meta WHERE name = ?", (_SOURCE,)).fetchone()
        return bool(source) and found == (source,)

    def _keep_items(self, candidates: Sequence[Item]) -> None:
        """Add the items that are new; other columns of those that are there may have changed."""
        execute = self._connection.execute
        there = {number: (data, row) for number, data, row in execute("SELECT number, data, row FROM items")}
        given = {item.number: item for item in candidates}
        for number, (data, _) in there.items():
            if number not in given or data_of(given[number]) != data:
                raise DataError(
                    f"{self.path}: was made for other candidates (row {number} is not the same); give it those, or "
                    "name another record with --record"
                )
        for number, item in given.items():
            if number not in there:
                _add_item(self._connection, item)
            elif (row := _columns(item)) != there[number][1]:
                execute("UPDATE items SET row = ? WHERE number = ?", (row, number))


def judgements(path: str | Path) -> list[Judgement]:
    """What people said and did not take back, in the order in which it was written; a server may have the file.

    Of several judgements of one item at one showing by one person the last counts. Skips have no ranks.

    Raises:
        DataError: the file is not there, something else, or damaged.
    """
    return [entry.judgement() for entry in live(entries(path))]


def entries(path: str | Path) -> list[Entry]:
    """All lines of a record, those that were taken back as well; see `judgements`."""
    with _reading(path) as connection:
        return read_entries(connection)


def items(path: str | Path) -> list[Item]:
    """The items of a record by number; see `judgements`."""
    with _reading(path) as connection:
        return read_items(connection)


def check(path: str | Path) -> int:
    """Look at all of a record: the file, its tables, and that each line fits its item; returns the number of lines.

    Raises:
        DataError: something is wrong; says what.
    """
    with _reading(path) as connection:
        wrong = [row[0] for row in connection.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
        wrong += [f"a row of {row[0]} names one of {row[2]} that is not there" for row in
                  connection.execute("PRAGMA foreign_key_check")]  # fmt: skip
        if wrong:
            raise DataError(f"{path}: is damaged ({'; '.join(wrong[:5])}); take a copy from before, or an export")
        shown = {item.number: item for item in read_items(connection)}
        lines = read_entries(connection)
    by_number = {entry.number: entry for entry in lines}
    for entry in lines:
        item, count = shown[entry.item], len(shown[entry.item].completions)
        taken = by_number.get(entry.takes_back or 0)
        if (
            entry.data != data_of(item)
            or sorted(entry.order) != list(range(count))
            or (entry.ranks is not None and len(entry.ranks) != count)
            or (entry.kind == "undo" and (taken is None or taken.kind == "undo" or taken.annotator != entry.annotator))
        ):
            raise DataError(f"{path}: line {entry.number} does not fit item {entry.item}; take a copy from before")
    return len(lines)


@contextmanager
def _reading(path: str | Path) -> Iterator[sqlite3.Connection]:
    with closing(schema.open_for_reading(Path(path))) as connection:
        try:
            connection.execute("BEGIN")  # all that is read is of one moment
            yield connection
        except (sqlite3.DatabaseError, ValueError) as error:
            raise DataError(f"{path}: is damaged ({error}); take a copy from before, or an export") from error
        finally:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")


def _add_item(connection: sqlite3.Connection, item: Item) -> None:
    values = (item.number, data_of(item), as_json(item.prompt), as_json(item.completions), _columns(item))
    connection.execute("INSERT INTO items (number, data, prompt, completions, row) VALUES (?, ?, ?, ?, ?)", values)


def _columns(item: Item) -> str:
    """What is known of an item beside prompt and answers, as it stands in the file."""
    return as_json({name: value for name, value in item.row.items() if name not in ("prompt", "completions")})


def _add_annotator(connection: sqlite3.Connection, name: str) -> None:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    connection.execute("INSERT OR IGNORE INTO annotators (name, at) VALUES (?, ?)", (name, at))
