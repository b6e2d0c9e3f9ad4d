"""The tables of the record, and how a file of an older version becomes one of this version."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rlhf_lightning.errors import DataError, DiskError

APPLICATION = 0x524C4642  # in the header of the file: it is ours
_HEADER = b"SQLite format 3\0"
_APPLICATION_AT = 68  # bytes; https://www.sqlite.org/fileformat.html, section 1.3

_REFUSE = "BEGIN SELECT RAISE(ABORT, '{} are only added'); END"
_FIRST = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE items (
        number INTEGER PRIMARY KEY,  -- of the row of the candidates, from 1
        data TEXT NOT NULL,          -- SHA-256 of prompt and completions
        prompt TEXT NOT NULL,        -- JSON, as the completions and the other columns of the row
        completions TEXT NOT NULL,
        row TEXT NOT NULL)""",
    "CREATE TABLE annotators (name TEXT PRIMARY KEY, token TEXT UNIQUE, at TEXT NOT NULL)",  # SHA-256 of the token
    """CREATE TABLE judgements (
        number INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,    -- made by the page, so that sending twice is writing once
        kind TEXT NOT NULL CHECK (kind IN ('ranking', 'skip', 'undo')),
        item INTEGER NOT NULL REFERENCES items (number),
        annotator TEXT NOT NULL REFERENCES annotators (name),
        ranks TEXT CHECK ((ranks IS NOT NULL) = (kind = 'ranking')),  -- JSON, in the order of the completions
        places TEXT NOT NULL,        -- JSON, the completion at each place of the page, from the top
        seconds REAL NOT NULL CHECK (seconds >= 0),
        ratings TEXT NOT NULL,       -- JSON, in the order of the completions
        flags TEXT NOT NULL,
        strength INTEGER,
        note TEXT NOT NULL,
        at TEXT NOT NULL,            -- UTC, ISO 8601
        takes_back INTEGER UNIQUE REFERENCES judgements (number) CHECK ((takes_back IS NOT NULL) = (kind = 'undo')),
        schema INTEGER NOT NULL,     -- version of these tables when it was written
        data TEXT NOT NULL)          -- SHA-256 of the prompt and the completions that were shown""",
    "CREATE TRIGGER judgements_stay BEFORE DELETE ON judgements " + _REFUSE.format("judgements"),
    "CREATE TRIGGER judgements_stay_as_they_are BEFORE UPDATE ON judgements " + _REFUSE.format("judgements"),
    # INSERT OR REPLACE deletes without asking the trigger above.
    """CREATE TRIGGER judgements_are_new BEFORE INSERT ON judgements
        WHEN EXISTS (SELECT 1 FROM judgements
                     WHERE number = NEW.number OR key = NEW.key OR takes_back = NEW.takes_back) """
    + _REFUSE.format("judgements"),
    "CREATE TRIGGER items_stay BEFORE DELETE ON items " + _REFUSE.format("items"),
    "CREATE TRIGGER items_stay_as_they_are BEFORE UPDATE OF number, data, prompt, completions ON items "
    + _REFUSE.format("items"),
    "CREATE TRIGGER items_are_new BEFORE INSERT ON items WHEN EXISTS (SELECT 1 FROM items WHERE number = NEW.number) "
    + _REFUSE.format("items"),
)
_SECOND = (
    # How often the person had been shown the item before: 0, or 1 for a repeat.
    "ALTER TABLE judgements ADD COLUMN showing INTEGER NOT NULL DEFAULT 0",
    """CREATE TABLE sessions (
        cookie TEXT PRIMARY KEY,     -- SHA-256
        annotator TEXT REFERENCES annotators (name),  -- NULL for who leads
        at TEXT NOT NULL) WITHOUT ROWID""",
)
_THIRD = (
    # Who wrote the answers of the arena, which nobody may change once somebody has voted on them.
    """CREATE TRIGGER authors_stay_as_they_are BEFORE UPDATE OF row ON items
        WHEN json_extract(OLD.row, '$.policies') IS NOT json_extract(NEW.row, '$.policies')
          OR json_extract(OLD.row, '$.weights') IS NOT json_extract(NEW.row, '$.weights') """
    + _REFUSE.format("authors"),
)
STEPS = (_FIRST, _SECOND, _THIRD)  # a file of version N has had the first N; a new one gets them all
VERSION = len(STEPS)


def migrate(connection: sqlite3.Connection, path: Path) -> int:
    """Bring a file to this version, all at once or not at all; returns the version that it had.

    Raises:
        DataError: a newer version of this library wrote it.
    """
    before = version(connection)
    if before > VERSION:
        raise DataError(
            f"{path}: is a record of version {before}, and this release knows {VERSION}; update rlhf_lightning"
        )
    if before == VERSION:
        return before
    with transaction(connection):
        for step in STEPS[before:]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    return before


def version(connection: sqlite3.Connection) -> int:
    """The version of the tables in an open file."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of what is written inside, on disk when this ends, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite may have given it up itself, where the disk is full for example
            connection.execute("ROLLBACK")
        raise


def check_ours(path: Path) -> None:
    """Look at the first bytes of a file, and change nothing.

    Raises:
        DataError: it is not there, it is not a record, or it has a second name, under which SQLite would not see what
            is written under the first.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path}: is not a file; name the record, labels.db for example")
        with path.open("rb") as stream:
            head = stream.read(100)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; `rlhf-lightning label CANDIDATES --record FILE` makes one, or `arena` with policies"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    ours = int.from_bytes(head[_APPLICATION_AT : _APPLICATION_AT + 4], "big")
    if not head.startswith(_HEADER) or ours != APPLICATION:
        raise DataError(f"{path}: is not a record of judgements and is left as it is; choose another name")
    if found.st_nlink > 1:
        raise DataError(f"{path}: has {found.st_nlink} names (hard links), which SQLite cannot keep apart; copy it")


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing; a server may have the file at the same time.

    Raises:
        DataError: see `check_ours`; also a file of a newer version.
    """
    check_ours(path)
    wal = path.with_name(f"{path.name}-wal")
    # In a folder where nothing can be written SQLite cannot make the index of a log; where no log is, none is needed.
    fixed = "" if os.access(path.parent, os.W_OK) or wal.exists() else "&immutable=1"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{fixed}", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA busy_timeout = 5000")
        found = version(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise DataError(f"{path}: is damaged ({error}); take a copy from before, or an export") from error
    if found > VERSION:
        connection.close()
        raise DataError(f"{path}: is a record of version {found}, and this release knows {VERSION}; update it")
    return connection


def open_for_writing(path: Path) -> sqlite3.Connection:
    """A connection whose commits are on the disk when they return; for one thread at a time.

    Raises:
        DiskError: it cannot be written.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for name, value in (("journal_mode", "WAL"), ("synchronous", "FULL"), ("foreign_keys", "ON")):
            connection.execute(f"PRAGMA {name} = {value}")
        connection.execute("PRAGMA busy_timeout = 5000")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.close()
            raise DiskError(f"{path}: this disk cannot hold SQLite's log beside the file; choose a local disk")
    except sqlite3.OperationalError as error:
        raise DiskError(f"{path}: cannot be written ({error}); free the disk or choose another place") from error
    return connection


def create(path: Path) -> None:
    """Make an empty record under a name that is free: whole or not at all. The caller holds the lock of the name.

    Raises:
        DiskError: it cannot be written.
    """
    new = path.with_name(f".tmp-{path.name}-new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in (new, new.with_name(f"{new.name}-wal"), new.with_name(f"{new.name}-shm")):
            name.unlink(missing_ok=True)
        with closing(open_for_writing(new)) as connection:
            migrate(connection, new)
        with new.open("rb") as stream:
            os.fsync(stream.fileno())
        os.rename(new, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, sqlite3.Error) as error:
        new.unlink(missing_ok=True)
        raise DiskError(f"{path}: cannot write here ({error}); free the disk or choose another place") from error
