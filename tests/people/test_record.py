"""The record: lines are only added, once each, by one process at a time."""

import os
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from rlhf_lightning.errors import CheckpointError, DataError, DiskError
from rlhf_lightning.people import record as records
from rlhf_lightning.people import schema
from rlhf_lightning.people.entries import Entry, data_of
from rlhf_lightning.people.record import Record
from tests.people.serving import items_of

ITEMS = items_of([("Why?", ["a", "b", "c"]), ("How?", ["d", "e"])])


def ranking(key, item=1, annotator="ann", ranks=(1, 2, 3), **more):
    return Entry(key, "ranking", item, annotator, ranks, tuple(range(len(ranks))), 1.5, **more)


def undo(key, line, item=1, annotator="ann"):
    return Entry(key, "undo", item, annotator, None, (0, 1, 2), 0.0, takes_back=line)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.db"


@pytest.fixture
def record(path):
    with Record(path, ITEMS) as made:
        yield made


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM judgements",
        "UPDATE judgements SET ranks = '[3,2,1]'",
        "UPDATE judgements SET note = 'other'",
        "INSERT OR REPLACE INTO judgements SELECT * FROM judgements",
        "INSERT OR REPLACE INTO judgements SELECT 9, key, kind, item, annotator, '[3,2,1]', places, seconds, ratings, "
        "flags, strength, note, at, takes_back, schema, data, showing FROM judgements WHERE kind = 'ranking'",
        "INSERT OR REPLACE INTO judgements SELECT 9, 'key-0009', kind, item, annotator, ranks, places, seconds, "
        "ratings, flags, strength, 'other', at, takes_back, schema, data, showing FROM judgements WHERE kind = 'undo'",
        "DELETE FROM items",
        "UPDATE items SET completions = '[]'",
        "UPDATE items SET prompt = '\"other\"'",
        "INSERT OR REPLACE INTO items SELECT * FROM items",
    ],
)
def test_nothing_that_was_said_can_be_changed_or_deleted(record, statement):
    record.add(ranking("key-0001"))
    record.add(undo("key-0002", 1))
    before = record.entries(), record.items()
    with pytest.raises(sqlite3.IntegrityError, match="are only added"), record.writing() as connection:
        connection.execute(statement)
    assert (record.entries(), record.items()) == before


def test_the_same_key_is_written_once(record):
    first, new = record.add(ranking("key-0001"))
    again, newer = record.add(ranking("key-0001", ranks=(3, 2, 1)))
    assert (new, newer) == (True, False)
    assert again == first == record.by_key("key-0001")
    assert not again.same_as(ranking("key-0001", ranks=(3, 2, 1)))
    assert len(record.entries()) == 1


def test_a_line_is_read_as_it_was_written_and_says_when(record, path):
    said = ranking("key-0001", ratings=(7, None, 1), flags=(("rude",), (), ()), note="ünï\n", showing=1)
    kept, _ = record.add(said)
    assert records.entries(path) == [kept]
    assert kept.same_as(said)
    assert (kept.number, kept.schema, kept.data) == (1, schema.VERSION, data_of(ITEMS[0]))
    assert kept.at.endswith("+00:00")


def test_an_item_that_is_not_there_is_refused(record):
    with pytest.raises(DataError, match=r"item 3: is not in .*labels\.db"):
        record.add(ranking("key-0001", item=3))
    assert record.entries() == []


def test_what_was_taken_back_does_not_count_and_is_still_there(record, path):
    record.add(ranking("key-0001"))
    record.add(undo("key-0002", 1))
    record.add(ranking("key-0003", item=2, ranks=(1, 1)))
    assert [one.item for one in records.judgements(path)] == [2]
    assert [one.kind for one in records.entries(path)] == ["ranking", "undo", "ranking"]
    assert records.check(path) == 3


def test_nothing_is_taken_back_twice(record):
    record.add(ranking("key-0001"))
    record.add(undo("key-0002", 1))
    with pytest.raises(sqlite3.IntegrityError):
        record.add(undo("key-0003", 1))
    assert len(record.entries()) == 2


def test_the_last_of_several_judgements_counts_and_a_repeat_beside_it(record, path):
    for key, ranks, showing in (("key-0001", (1, 2, 3), 0), ("key-0002", (2, 1, 3), 0), ("key-0003", (3, 1, 2), 1)):
        record.add(ranking(key, ranks=ranks, showing=showing))
    assert [one.ranks for one in records.judgements(path)] == [(2, 1, 3), (3, 1, 2)]


def test_a_transaction_that_fails_leaves_nothing(record):
    with pytest.raises(KeyError), record.writing():
        record.add(ranking("key-0001"))
        raise KeyError
    assert record.entries() == []


def test_a_record_has_one_writer_and_is_free_afterwards(record, path):
    with pytest.raises(CheckpointError, match=r"labels\.db"):
        Record(path)
    record.close()
    Record(path).close()


def test_others_read_while_a_writer_has_it(record, path):
    record.add(ranking("key-0001"))
    with record.writing():
        record.add(ranking("key-0002", item=2, ranks=(2, 1)))
        assert [one.key for one in records.entries(path)] == ["key-0001"]  # the other is not there yet
    assert [one.item for one in records.judgements(path)] == [1, 2]
    assert records.items(path) == ITEMS
    assert records.check(path) == 2


def _other_database(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE judgements (mine TEXT)")


@pytest.mark.parametrize(
    "write",
    [
        _other_database,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text('{"prompt": "a"}\n'),
        lambda path: path.write_bytes(b"SQLite format 3\0"),
    ],
    ids=["another database", "empty", "rows", "cut"],
)
def test_a_file_of_somebody_else_is_refused_and_left_as_it_is(path, write):
    write(path)
    before = path.read_bytes()
    for look in (lambda: Record(path, ITEMS), lambda: records.entries(path), lambda: records.check(path)):
        with pytest.raises(DataError, match="is not a record of judgements and is left as it is"):
            look()
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["labels.db"]


def test_a_folder_a_second_name_and_nothing_at_all_are_refused(path, tmp_path):
    with pytest.raises(DataError, match="no such file; `rlhf-lightning label CANDIDATES --record FILE` makes one"):
        Record(path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="is not a file"):
        Record(tmp_path, ITEMS)
    Record(path, ITEMS).close()
    os.link(path, tmp_path / "second.db")
    with pytest.raises(DataError, match="has 2 names"):
        Record(path)


@pytest.mark.parametrize(
    "given",
    [ITEMS[:1], [replace(ITEMS[0], completions=("a", "b", "x")), ITEMS[1]], [replace(ITEMS[0], prompt="?"), ITEMS[1]]],
    ids=["fewer", "another answer", "another prompt"],
)
def test_other_candidates_are_refused_and_named(record, path, given):
    record.close()
    with pytest.raises(DataError, match=r"was made for other candidates \(row [12] is not the same\)"):
        Record(path, given)
    assert records.items(path) == ITEMS


def test_rows_at_the_end_are_added_and_other_columns_may_change(record, path):
    record.add(ranking("key-0001"))
    record.close()
    more = items_of([("Why?", ["a", "b", "c"]), ("How?", ["d", "e"]), ("Who?", ["f", "g"])])
    more[0] = replace(more[0], row={**more[0].row, "scores": [1.0, 2.0, 3.0]})
    with Record(path, more) as again:
        assert again.items() == more
        again.add(ranking("key-0002", item=3, ranks=(1, 2)))
    assert records.check(path) == 2


def test_the_seed_is_kept_and_another_one_refused(path):
    Record(path, ITEMS, seed=7).close()
    with Record(path) as again:
        assert again.seed == 7
    with pytest.raises(DataError, match="was begun with seed 7; leave --seed out"):
        Record(path, seed=8)


def of_version_one(path):
    """A file as the first version wrote it, by hand."""
    with closing(sqlite3.connect(path)) as old:
        for statement in schema._FIRST:
            old.execute(statement)
        old.execute(f"PRAGMA application_id = {schema.APPLICATION}")
        old.execute("PRAGMA user_version = 1")
        old.execute("INSERT INTO meta VALUES ('seed', '3')")
        for item in ITEMS:
            answers = str(list(item.completions)).replace("'", '"').replace(" ", "")
            values = (item.number, data_of(item), f'"{item.prompt}"', answers, "{}")
            old.execute("INSERT INTO items VALUES (?, ?, ?, ?, ?)", values)
        old.execute("INSERT INTO annotators VALUES ('ann', NULL, '2026-01-01T00:00:00+00:00')")
        values = (
            1, "key-0001", "ranking", 1, "ann", "[2,1,3]", "[2,0,1]", 4.5, "[]", "[]", None, "a note",
            "2026-01-01T00:00:00.000+00:00", None, 1, data_of(ITEMS[0]),
        )  # fmt: skip
        old.execute(f"INSERT INTO judgements VALUES ({', '.join('?' * 16)})", values)
        old.commit()


def test_a_file_of_the_first_version_is_read_as_it_is_and_brought_up_to_date_by_a_writer(path):
    of_version_one(path)
    before = path.read_bytes()
    (read,) = records.entries(path)
    assert (read.ranks, read.order, read.note, read.schema, read.showing) == ((2, 1, 3), (2, 0, 1), "a note", 1, 0)
    assert path.read_bytes() == before
    with Record(path, ITEMS) as now:
        assert now.seed == 3
        now.add(ranking("key-0002", showing=1))
        assert now.rows("SELECT count(*) FROM sessions") == [(0,)]
    first, second = records.entries(path)
    assert first == read
    assert (second.schema, second.showing) == (schema.VERSION, 1)
    assert records.check(path) == 2


def test_an_upgrade_that_fails_leaves_the_first_version(path, monkeypatch):
    of_version_one(path)
    monkeypatch.setattr(schema, "STEPS", (schema._FIRST, (*schema._SECOND, "CREATE TABLE meta (name TEXT)")))
    with pytest.raises(DiskError, match="table meta already exists"):
        Record(path)
    with closing(sqlite3.connect(path)) as left:
        assert schema.version(left) == 1
        assert len(left.execute("SELECT * FROM judgements").fetchone()) == 16


def test_a_file_of_a_later_version_is_refused(record, path):
    record.close()
    with closing(sqlite3.connect(path)) as later:
        later.execute("PRAGMA user_version = 99")
    for look in (lambda: Record(path), lambda: records.entries(path)):
        with pytest.raises(DataError, match=r"is a record of version 99, and this release knows \d"):
            look()


def test_a_damaged_file_is_said(path):
    with Record(path, ITEMS) as record:
        for number in range(60):
            record.add(ranking(f"key-{number:04}", annotator=f"person {number}", note="x" * 500))
    whole = path.read_bytes()
    assert len(whole) > 20_000
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    for look in (lambda: records.check(path), lambda: records.entries(path), lambda: Record(path, ITEMS)):
        with pytest.raises(DataError, match=r"labels\.db: is damaged .*take a copy from before"):
            look()


def test_a_line_that_does_not_fit_its_item_is_found(record, path):
    record.add(ranking("key-0001", item=2, ranks=(1, 2, 3)))
    with pytest.raises(DataError, match="line 1 does not fit item 2"):
        records.check(path)


def test_candidates_are_read_again_only_where_their_file_has_changed(path):
    read = []

    def candidates():
        read.append(1)
        return ITEMS

    for source, times in (("a", 1), ("a", 1), ("b", 2), ("b", 2), ("", 3), ("b", 4)):
        with Record(path, candidates, source=source) as made:
            assert (len(read), made.items()) == (times, ITEMS)


def test_candidates_that_cannot_be_read_leave_no_record(path):
    def candidates():
        raise DataError("row 3: is none")

    with pytest.raises(DataError, match="row 3"):
        Record(path, candidates, source="a")
    assert not path.exists()
