"""A record as JSON lines and back: nothing is lost, nothing comes twice, nothing half."""

import json
import sqlite3

import pytest

from rlhf_lightning.data.readers.files import read_rows
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.errors import DataError, DiskError
from rlhf_lightning.people import record as records
from rlhf_lightning.people.entries import Entry
from rlhf_lightning.people.exchange import exported, import_into
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.training import read_record
from tests.people.serving import items_of

ITEMS = items_of(
    [("Why?", ["a", "b", "c"]), ("How?", ["d\n", "é"]), ([{"role": "user", "content": "Who?"}], ["f", "g"])]
)


def said(key, item, ranks, annotator="ann", **more):
    kind, size = "skip" if ranks is None else "ranking", len(ITEMS[item - 1].completions)
    return Entry(key, kind, item, annotator, ranks, tuple(reversed(range(size))), 2.25, **more)


LINES = [
    said("key-0001", 1, (1, 2, 2), ratings=(7, None, 1), flags=(("rude",), (), ("wrong", "rude")), note="ünï\u2028"),
    said("key-0002", 2, (2, 1), strength=3),
    Entry("key-0003", "undo", 2, "ann", None, (1, 0), 0.0, takes_back=2),
    said("key-0004", 3, None, "bob"),
    said("key-0005", 2, (1, 1), "bob"),
    said("key-0006", 1, (3, 1, 1), showing=1),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def source(tmp_path):
    with Record(tmp_path / "source.db", ITEMS) as record:
        for line in LINES:
            record.add(line)
        yield record


@pytest.fixture
def target(tmp_path):
    with Record(tmp_path / "target.db", ITEMS) as record:
        yield record


@pytest.fixture
def rows(source):
    return list(exported(source.path))


@pytest.fixture
def file(tmp_path, rows):
    return write(tmp_path / "labels.jsonl", rows)


def test_an_export_has_each_line_with_what_was_judged(rows):
    assert [(row["number"], row["kind"], row["key"]) for row in rows] == [
        (number, line.kind, line.key) for number, line in enumerate(LINES, 1)
    ]
    assert (rows[0]["prompt"], rows[0]["completions"]) == ("Why?", ["a", "b", "c"])
    assert (list(rows[0]["ranks"]), list(rows[0]["order"]), rows[0]["seconds"]) == ([1, 2, 2], [2, 1, 0], 2.25)
    assert rows[3]["prompt"] == [{"role": "user", "content": "Who?"}]


def test_an_import_into_a_new_record_gives_the_same_lines(source, target, file):
    assert import_into(target, file) == (6, 0)
    assert records.entries(target.path) == records.entries(source.path)
    assert records.judgements(target.path) == records.judgements(source.path)
    assert records.check(target.path) == 6


def test_the_same_import_twice_adds_nothing(target, file):
    import_into(target, file)
    assert import_into(target, file) == (0, 6)
    assert len(target.entries()) == 6


def test_an_export_of_an_import_is_the_same_file(target, file, rows):
    import_into(target, file)
    assert list(exported(target.path)) == rows


def test_what_was_taken_back_stays_so_where_lines_get_other_numbers(target, file):
    target.add(said("other-01", 3, (1, 2), "cat"))
    target.add(said("other-02", 2, (1, 2), "cat"))
    assert import_into(target, file) == (6, 0)
    undo = target.by_key("key-0003")
    assert undo.takes_back == target.by_key("key-0002").number == 4
    live = [(one.annotator, one.item, one.ranks) for one in records.judgements(target.path)]
    assert ("ann", 2, (2, 1)) not in live and ("cat", 2, (1, 2)) in live
    assert len(live) == 6
    assert records.check(target.path) == 8


def test_two_exports_of_one_begin_meet_in_one_record(source, target, tmp_path, file):
    import_into(target, file)
    target.add(said("bobs-001", 3, (2, 1), "bob"))
    source.add(said("anns-001", 3, (1, 1), "ann"))
    assert import_into(source, write(tmp_path / "bob.jsonl", exported(target.path))) == (1, 6)
    assert {entry.key for entry in source.entries()} == {line.key for line in LINES} | {"bobs-001", "anns-001"}


def test_what_was_taken_back_here_and_there_is_taken_back_once(source, target, tmp_path, file):
    import_into(target, file)
    for record, key in ((source, "undo-one"), (target, "undo-two")):
        record.add(Entry(key, "undo", 2, "bob", None, (1, 0), 0.0, takes_back=5))
    assert import_into(target, write(tmp_path / "again.jsonl", exported(source.path))) == (0, 7)
    assert [entry.key for entry in target.entries() if entry.kind == "undo"] == ["key-0003", "undo-two"]


def test_a_disk_that_fails_is_said_and_nothing_is_added(target, file, monkeypatch):
    add, calls = target.add, []

    def fails(entry):
        calls.append(entry)
        if len(calls) == 4:
            raise sqlite3.OperationalError("database or disk is full")
        return add(entry)

    monkeypatch.setattr(target, "add", fails)
    with pytest.raises(
        DiskError, match=r"target\.db: cannot be written \(database or disk is full\); nothing was added"
    ):
        import_into(target, file)
    assert target.entries() == []


def test_other_candidates_are_refused_with_their_line_and_nothing_is_added(tmp_path, file):
    other = items_of([("Why?", ["a", "b", "c"]), ("How?", ["d", "other"])])
    with Record(tmp_path / "other.db", other) as record:
        with pytest.raises(DataError, match=r"labels\.jsonl:2: item 2: other candidates were judged"):
            import_into(record, file)
        assert record.entries() == []


def changed(at, /, **more):
    def change(rows):
        rows[at] |= more

    return change


def without(number, name):
    return lambda rows: rows[number].pop(name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(4, "key"), ":5: key: is missing"),
        (without(4, "data"), ":5: data: is missing"),
        (lambda rows: rows.pop(1), ":2: takes_back: line 2 is not in the file before it"),
        (changed(4, item=9), ":5: item 9: other candidates were judged"),
        (changed(4, key="key-0001"), ":5: key key-0001: stands for another judgement"),
        (changed(4, order=3), ":5: "),
        (changed(4, order=[0, 0]), ":5: order: "),
        (changed(4, order=[0, 1, 2]), ":5: order: "),
        (changed(4, ranks=[1]), ":5: ranks: "),
        (changed(4, ranks=[1, 9]), ":5: ranks: "),
        (changed(4, ranks=["1", "2"]), ":5: ranks: "),
        (changed(4, ranks=None), ":5: ranks: "),
        (changed(3, ranks=[1, 2]), ":4: ranks: "),
        (changed(4, kind="other"), ":5: kind: "),
        (changed(4, key=7), ":5: key: "),
        (changed(4, annotator=""), ":5: name: "),
        (changed(4, annotator=None), ":5: name: "),
        (changed(4, seconds=-1), ":5: seconds: "),
        (changed(4, seconds="soon"), ":5: seconds: "),
        (changed(4, note=None), ":5: note: "),
        (changed(4, ratings=[1]), ":5: ratings: "),
        (changed(4, flags=[["rude"]]), ":5: flags: "),
        (changed(4, flags=[1, 2]), ":5: "),
        (changed(4, strength=9), ":5: strength: "),
        (changed(4, showing="x"), ":5: showing: "),
        (changed(2, takes_back=None), ":3: takes_back: "),
        (changed(4, takes_back=1), ":5: takes_back: "),
        (changed(2, annotator="bob"), ":3: takes_back: "),
        (changed(4, at=5), ":5: at: "),
        (changed(4, item="2"), ":5: item"),
        (changed(4, number=[5]), ":5: item, number: "),
        (changed(4, order=None), ":5: order: "),
        (changed(4, schema="1"), ":5: schema: "),
    ],
)
def test_a_line_that_is_none_is_refused_by_file_and_line_and_nothing_is_added(target, tmp_path, rows, change, says):
    rows = json.loads(json.dumps(rows))
    change(rows)
    with pytest.raises(DataError) as error:
        import_into(target, write(tmp_path / "labels.jsonl", rows))
    assert f"labels.jsonl{says}" in str(error.value)
    assert target.entries() == []


def test_merged_rankings_are_rows_that_training_takes(source, tmp_path):
    file = write(tmp_path / "rankings.jsonl", read_record(source.path).merged.rows)
    found = validate_rows(read_rows(file), "comparisons")
    assert [row.row["ranks"] for row in found] == [[3, 1, 1], [1, 1]]
