"""Parquet files and saved data sets; the readers themselves run only where pyarrow and datasets are installed."""

import importlib.util
import re

import pytest

from rlhf_lightning.data.readers.files import iter_rows, read_rows
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.data.rows.validate import load_rows
from rlhf_lightning.errors import DataError

ROWS = [
    {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2], "extra": None},
    {"prompt": "d", "completions": ["e", "f"], "ranks": [2, 1], "extra": {"x": 1.5}},
]


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason="pyarrow is optional")


@pytest.fixture
def parquet(arrow, tmp_path):
    import pyarrow.parquet

    def write(rows, name="rows.parquet"):
        table = arrow.Table.from_pylist(rows) if isinstance(rows, list) else rows
        pyarrow.parquet.write_table(table, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "rows.parquet"), ("datasets", "saved")])
def test_without_the_package_the_source_is_refused_with_the_command_that_helps(monkeypatch, tmp_path, package, name):
    monkeypatch.setitem(__import__("sys").modules, package, None)  # what an import finds where it is not installed
    path = tmp_path / name
    if package == "datasets":
        path.mkdir()
        path /= "state.json"
    path.write_text("{}")
    path = tmp_path / name
    with pytest.raises(DataError, match=re.escape(f"{path}: ") + f".*needs {package}; pip install .*, or write"):
        read_rows(path)
    if package == "datasets":
        with pytest.raises(DataError, match=r"hf:owner/rows:test: needs datasets"):
            read_rows("hf:owner/rows:test")


def test_parquet_rows_are_those_of_json_and_are_named_by_their_number(parquet):
    path = parquet(ROWS)
    rows = read_rows(path)
    assert [row.row for row in rows] == ROWS
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:2"]


def test_values_that_json_has_no_form_for_are_those_that_a_json_file_would_hold(arrow, parquet):
    from datetime import date, datetime, timedelta
    from decimal import Decimal

    turns = [[[("role", "user"), ("content", "Q")], [("role", "assistant"), ("content", "A")]]]
    values = {
        "text": [b"as bytes"], "other": [b"\xff\x00"], "when": [datetime(2024, 1, 2, 3)], "day": [date(2024, 1, 2)],
        "long": [timedelta(seconds=5)], "whole": [Decimal("3")], "part": [Decimal("2.5")], "deep": [{"a": [b"b"]}],
        "kind": arrow.array(["x"]).dictionary_encode(), "none": arrow.nulls(1), "number": [1.5],
        "turns": arrow.array(turns, arrow.list_(arrow.map_(arrow.string(), arrow.string()))),
    }  # fmt: skip
    (row,) = read_rows(parquet(arrow.table(values)))
    assert row.row == {
        "text": "as bytes", "other": "/wA=", "when": "2024-01-02T03:00:00", "day": "2024-01-02", "long": "0:00:05",
        "whole": 3, "part": 2.5, "deep": {"a": ["b"]}, "kind": "x", "none": None, "number": 1.5,
        "turns": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
    }  # fmt: skip
    twice = arrow.array([[("a", 1), ("a", 2)], [("a", 1)]], arrow.map_(arrow.string(), arrow.int8()))
    problems = Problems()
    assert len(list(iter_rows(parquet(arrow.table({"m": twice})), problems))) == 1
    assert "rows.parquet:1: a key of a map is there more than once" in problems.first[0]


def test_bad_parquet_rows_are_named_and_left_out_within_the_budget(arrow, parquet):
    many = [{"text": f"row {i}"} for i in range(2500)]
    many[1], many[2400], many[2499] = {"text": "a\x00b"}, {"text": ""}, {"text": None}
    path = parquet(many)
    with pytest.raises(DataError) as refused:
        load_rows([path], "demonstrations", 2)
    assert str(refused.value).splitlines() == [
        f"{path}:2: NUL character; remove it.",
        f"{path}:2401: text: is empty; fill it or delete the row.",
        f"{path}:2500: text: is null; write text.",
        "3 of 2500 rows cannot be used (max_bad_rows is 2).",
    ]
    rows, bad = load_rows([path], "demonstrations", 3)
    assert (len(rows), bad, rows[1].line) == (2497, 3, 3)


def test_bytes_in_parquet_that_are_no_text_are_one_bad_row(arrow, parquet):
    offsets, data = arrow.py_buffer(b"\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00"), b"a\xffb"
    column = arrow.StringArray.from_buffers(3, offsets, arrow.py_buffer(data))
    path = parquet(arrow.table({"text": column}))
    problems = Problems()
    assert [row.row["text"] for row in iter_rows(path, problems)] == ["a", "b"]
    assert problems.first == [f"{path}:2: byte 0xff is not UTF-8; save the text as UTF-8."]


def test_parquet_files_that_cannot_be_read_are_named(arrow, parquet, tmp_path):
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(parquet(ROWS).read_bytes()[:-20])
    (tmp_path / "text.parquet").write_text("prompt\n")
    for path in (damaged, tmp_path / "text.parquet"):
        with pytest.raises(DataError, match=re.escape(f"{path}: cannot be read as parquet")):
            read_rows(path)
    with pytest.raises(DataError, match="the file has no rows"):
        read_rows(parquet(arrow.table({"text": arrow.array([], arrow.string())}), "empty.parquet"))
    twice = arrow.table([arrow.array(["a"]), arrow.array(["b"])], names=["text", "text"])
    with pytest.raises(DataError, match=r"column names must differ .*'text'"):
        read_rows(parquet(twice, "twice.parquet"))


def test_a_folder_may_mix_formats(parquet, tmp_path):
    parquet([{"text": "2"}], "b.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": "1"}\n')
    assert [row.row["text"] for row in read_rows(tmp_path)] == ["1", "2"]


@pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="datasets is optional")
@pytest.mark.filterwarnings("ignore")  # of the libraries that datasets imports
def test_saved_data_sets_are_read_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    bad = {"prompt": "", "completions": ["b", "c"], "ranks": [1, 2]}
    saved = datasets.Dataset.from_list([ROWS[1], bad])
    saved.save_to_disk(tmp_path / "saved")
    rows, left_out = load_rows([tmp_path / "saved"], "comparisons", 1)
    assert (rows[0].row, rows[0].where, left_out) == (ROWS[1], f"{tmp_path / 'saved'}:1", 1)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'saved'}:2: prompt: is empty")):
        load_rows([tmp_path / "saved"], "comparisons", 0)

    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match="both: holds the splits test, train; name the folder of one of them"):
        read_rows(tmp_path / "both")
    assert len(read_rows(tmp_path / "both" / "test")) == 2

    (tmp_path / "hub").mkdir()  # `load_dataset` takes a folder as it takes a name
    (tmp_path / "hub" / "test.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    name = f"hf:{tmp_path / 'hub'}:test"
    assert [(row.where, row.row) for row in read_rows(name)] == [
        (f"{name}:1", {"text": "a"}),
        (f"{name}:2", {"text": "b"}),
    ]
    with pytest.raises(DataError, match="cannot be loaded"):
        read_rows(f"hf:{tmp_path / 'hub'}:none")
