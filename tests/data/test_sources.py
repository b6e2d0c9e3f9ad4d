import csv
import re
import tracemalloc

import pytest

from rlhf_lightning.data.readers import lines
from rlhf_lightning.data.readers.files import read_rows
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.errors import DataError


def test_jsonl_keeps_unknown_columns_and_knows_its_lines(write):
    rows = read_rows(write(b'\xef\xbb\xbf{"prompt": "a", "topic": [1]}\r\n\r\n   \n{"prompt": "b"}'))
    assert [row.row for row in rows] == [{"prompt": "a", "topic": [1]}, {"prompt": "b"}]
    assert [row.line for row in rows] == [1, 4]
    assert rows[1].where.endswith("rows.jsonl:4")


def test_emoji_written_as_two_escapes_is_text(write):
    assert read_rows(write('{"prompt": "\\ud83d\\ude00"}'))[0].row == {"prompt": "\U0001f600"}


@pytest.mark.parametrize(
    ("content", "column", "reason"),
    [
        (b'{"a": 1', 8, "broken JSON"),
        (b'{"a": 1,}', 9, "trailing comma"),
        (b'{"a": [1, ]}', 11, None),
        (b'{"a": 1},', 9, "remove the comma after the object"),
        (b'{"a": 1}{"b": 2}', 9, "more than one value"),
        (b'{"a": 1} {"b": 2}', 10, "more than one value"),
        (b'["a", 1]', 1, "is a list, not an object"),
        (b'"a"', 1, "is a str, not an object"),
        (b'{"a": "caf\xe9"}', 11, "0xe9 is not UTF-8"),
        ('{"é": "'.encode() + b'\xff"}', 8, "0xff is not UTF-8"),
        (b'{"a": "x\x00y"}', 9, "NUL"),
        (b'{"a": "x\\u0000y"}', 9, "NUL"),
        (b'{"a": "x\\ud800y"}', 9, "lone surrogate"),
        (b'{"a": "\\ud83d\\ude00 \\udc00"}', 21, "lone surrogate"),
        (b'{"\\udfff": 1}', 3, "lone surrogate"),
        (b'{"a": NaN}', 7, "NaN is not JSON"),
        (b'{"a NaN": "NaN \\" -Infinity", "b": [-Infinity]}', 37, "-Infinity is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", 7, "digits"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", 1, "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 1, "nested too deeply"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_by_file_line_and_column(write, content, column, reason):
    path = write(b'{"prompt": "fine"}\n' + content + b"\n")
    with pytest.raises(DataError, match=re.escape(f"{path}:2:{column}: ")) as caught:
        read_rows(path)
    assert reason is None or reason in str(caught.value)
    assert caught.value.exit_code == 3


def test_several_bad_lines_are_counted_in_one_error(write):
    path = write("{}\n" + "{\n" * 7)
    with pytest.raises(DataError, match=r"rows.jsonl:2:2(.|\n)*:6:2(.|\n)*and 2 more\n7 of 8 rows") as caught:
        read_rows(path)
    assert ":7:" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_file_without_rows_is_an_error(write, content, name):
    with pytest.raises(DataError, match="the file has no rows"):
        read_rows(write(content, name))


def test_paths_that_are_no_data_file_are_named(tmp_path, write):
    for path, reason in (
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path / "none", "no such file"),
        (write(b"some words\n", "rows.txt"), "unknown format '.txt'"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            read_rows(path)
        assert str(path) in str(caught.value)


def test_a_folder_is_read_in_the_order_of_its_names(write, tmp_path):
    write([{"text": "2"}], "b.jsonl")
    write("text\n1\n", "a.csv")
    write(b"{}", "provenance.json")
    assert [row.row["text"] for row in read_rows(tmp_path)] == ["1", "2"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        read_rows(tmp_path / "empty")


def test_a_huge_line_is_refused_without_holding_it(write, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2**16)
    path = write(b'{"text": "' + b"x" * 2**24 + b'"}')
    tracemalloc.start()
    with pytest.raises(DataError, match=r"rows.jsonl:1: the line is longer than 65536 bytes"):
        read_rows(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_cells_of_csv_stay_text_until_the_row_is_looked_at(write):
    path = write(
        b"\xef\xbb\xbfprompt,completions,ranks,margin\r\n"
        b'"two\r\nlines","[""a"", ""b, c""]","[1, 1.5]",0.5\r\n'
        b"\r\n"
        b'[draft] go,"[""a"",""b""]","[2,1]",\r\n',
        "rows.csv",
    )
    rows = read_rows(path)
    assert rows[1].row == {"prompt": "[draft] go", "completions": '["a","b"]', "ranks": "[2,1]", "margin": ""}
    assert [row.line for row in rows] == [2, 5]
    sound = [row.row for row in validate_rows(rows, "comparisons")]
    assert sound[0] == {"prompt": "two\r\nlines", "completions": ["a", "b, c"], "ranks": [1, 1.5], "margin": 0.5}
    assert sound[1] == {"prompt": "[draft] go", "completions": ["a", "b"], "ranks": [2, 1], "margin": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,text\nx\n", ":2: 1 cells under 2 column names"),
        ("text\nfine\n\na,b\n", ":4: 2 cells under 1"),
        ("text,text\na,b\n", r":1: column names must differ .*'text'"),
        ('text\nok\n"never closed\n', ":3: broken CSV"),
        ("text\nx\x00y\n", ":2:2: NUL"),
    ],
)
def test_broken_csv_is_named(write, content, message):
    with pytest.raises(DataError, match=message):
        read_rows(write(content, "rows.csv"))


def test_csv_that_is_not_utf8_is_named_and_limits_are_restored(write):
    limit = csv.field_size_limit()
    with pytest.raises(DataError, match=r"rows.csv:2:4: byte 0xe9"):
        read_rows(write(b"text\ncaf\xe9\n", "rows.csv"))
    assert csv.field_size_limit() == limit
    assert len(read_rows(write("text\n" + "x" * 200_000, "long.csv"))[0].row["text"]) == 200_000
