"""Files by their content: each gives the same two rows, or says what it is and what to give instead."""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import re
import tracemalloc

import pytest

from rlhf_lightning.data.readers import files
from rlhf_lightning.data.readers.arrow import hub_parts
from rlhf_lightning.data.readers.files import iter_rows, read_rows
from rlhf_lightning.data.readers.places import exists
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.errors import DataError

ROWS = [{"prompt": "Why, é; 'so'?\tyes", "completion": 'A "b",\nc'}, {"prompt": "two", "completion": "2"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
BROAD = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS)
PRETTY = json.dumps(ROWS, indent=2)


def table(delimiter, lineterminator="\r\n", before=(), after=()):
    """The rows as a table, with cells before and after each."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=lineterminator)
    writer.writerow([*(b[0] for b in before), "prompt", "completion", *(a[0] for a in after)])
    for number, row in enumerate(ROWS, start=1):
        writer.writerow([*(b[number] for b in before), *row.values(), *(a[number] for a in after)])
    return text.getvalue()


INDEX, NOTHING = ["", "0", "1"], ["", "", ""]
TAKEN = {
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "lines.ndjson": LINES,
    "lines": LINES,
    "array.json": ARRAY,
    "array.jsonl": ARRAY,
    "pretty.json": PRETTY,
    "pretty.jsonl": "\n \n" + PRETTY + "\n\n",
    "objects.json": "".join(json.dumps(row, indent=1) + "\n" for row in ROWS),
    "crlf.jsonl": LINES.replace("\n", "\r\n"),
    "mark.jsonl": "\ufeff" + LINES,
    "joined_marks.jsonl": "".join("\ufeff" + line + "\n" for line in LINES.splitlines()),
    "lines.jsonl.gz": gzip.compress(LINES.encode()),
    "members.jsonl.gz": b"".join(gzip.compress(line.encode() + b"\n") for line in LINES.splitlines()),
    "array.json.gz": gzip.compress(ARRAY.encode()),
    "table.csv.gz": gzip.compress(table(",").encode()),
    "packed_without_a_word.jsonl": gzip.compress(LINES.encode()),
    "lines.jsonl.bz2": bz2.compress(LINES.encode()),
    "lines.jsonl.xz": lzma.compress(LINES.encode()),
    "utf16.jsonl": BROAD.encode("utf-16"),
    "utf16be.jsonl": b"\xfe\xff" + BROAD.encode("utf-16-be"),
    "utf16_without_mark.jsonl": LINES.encode("utf-16-le"),
    "utf32.jsonl": BROAD.encode("utf-32"),
    "utf16.csv": table("\t").encode("utf-16"),
    "utf16.json": json.dumps(ROWS, ensure_ascii=False).encode("utf-16"),
    "table.csv": table(","),
    "semicolon.csv": table(";"),
    "tab.csv": table("\t", "\n"),
    "table.tsv": table("\t"),
    "bar.csv": table("|"),
    "sep.csv": "sep=;\r\n" + table(";"),
    "table.jsonl": table(","),
    "lines.csv": LINES,
    "index.csv": table(",", before=[INDEX]),
    "index_again.csv": table(",", before=[["Unnamed: 0", "5", "7"]]),
    "trailing.csv": table(";", after=[NOTHING, NOTHING]),
    "mark.csv": b"\xef\xbb\xbf" + table(",").encode(),
    "blank_first.csv": "\r\n" + table(","),
}
REFUSED = {
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS.*git lfs pull"),
    "rows.xlsx": (b"PK\x03\x04" + b"\0" * 40, "is a zip archive .*unpack it, or save the sheet as CSV"),
    "rows.tar": (b"a" * 257 + b"ustar" + b"\0" * 90, "is a tar archive; unpack it"),
    "rows.tar.gz": (gzip.compress(b"a" * 257 + b"ustar" + b"\0" * 90), "is a tar archive; unpack it"),
    "rows.jsonl.lz4": (b"\x04\x22\x4d\x18" + b"\0" * 40, "is packed by lz4; unpack it with `lz4 -d`"),
    "rows.feather": (b"FEA1" + b"\0" * 40, "is a Feather file of the first kind; save it again as parquet"),
    "page.jsonl": ("<!DOCTYPE html><html></html>", "is a web page"),
    "rows.pkl": (b"\x80\x04\x95" + b"\0" * 20, "is a pickle, .*write the rows as .jsonl"),
    "._rows.jsonl": (b"\x00\x05\x16\x07" + b"\0" * 40, "is what macOS keeps beside"),
    "cut.jsonl.gz": (gzip.compress(LINES.encode() * 99)[:-30], "the compressed file is damaged or cut off"),
    "cut.json": (ARRAY[:-1], ":1: the list does not end; the file is cut off"),
    "cut_pretty.json": (PRETTY[:-20], r":8: row 2: broken JSON: .*The rows after it cannot be read; mend the file"),
    "comma.json": (ARRAY[:-1] + ",]", ":1: trailing comma; remove it"),
    "after.json": (ARRAY + ARRAY, ":1: something follows the list"),
    "numbers.json": ("[1, 2]", r":1 \(row 1\): the line is a int, not an object"),
    "twice.json": ('[{"a": 1},\n {"a": 1, "a": 2}]', r":2 \(row 2\): a: is there more than once"),
    "deep.json": ('[{"a": ' + "[" * 90 + "]" * 90 + "}]", r":1 \(row 1\): lists or objects are nested too deeply"),
    "words.txt": ("just words\n", "unknown format '.txt'; write the rows as .jsonl"),
    "rows.arrow": (b"ARROW1" + b"\0" * 40, "Arrow files need pyarrow; pip install|cannot be read as Arrow"),
    "rows.parquet": (b"PAR1" + b"\0" * 40, "parquet needs pyarrow; pip install|cannot be read as parquet"),
    "rows.jsonl.zst": (b"\x28\xb5\x2f\xfd" + b"\0" * 40, "zstd needs pyarrow; pip install|damaged"),
    "rows.parquet.gz": (gzip.compress(b"PAR1" + b"\0" * 40), "is packed once more than its format asks for"),
    "latin.csv": (table(",").encode("latin-1"), ":2:7: byte 0xe9 is not UTF-8"),
    "odd.jsonl": (b"\xff\xfe" + BROAD.encode("utf-16-le")[:-1], "is text in utf-16.*, and broken"),
    "header_twice.csv": (table(",") + table(","), ":5: is the header once more"),
    "nameless.csv": (table(",", after=[["", "", "x"]]), ":4: 3 cells under 2 column names"),
    "no_index.csv": (table(",", before=[["", "a", "b"]]), ":2: the first column has no name"),
    "nameless_middle.csv": ("prompt,,completion\na,b,c\n", ":1: column names must differ and not be empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_the_file_is_read_whatever_it_is_called(write, name):
    assert [row.row for row in read_rows(write(TAKEN[name], name))] == ROWS


@pytest.mark.parametrize("name", REFUSED)
def test_the_file_is_refused_with_what_it_is_and_what_to_do(write, name):
    content, says = REFUSED[name]
    path = write(content, name)
    with pytest.raises(DataError) as refused:
        read_rows(path)
    assert str(refused.value).startswith(str(path)) and re.search(says, str(refused.value)), refused.value


def test_rows_of_a_list_have_a_line_and_a_number(write):
    path = write(PRETTY, "rows.json")
    assert [row.where for row in read_rows(path)] == [f"{path}:2 (row 1)", f"{path}:6 (row 2)"]
    assert [row.where for row in read_rows(write(ARRAY, "one.json"))][1].endswith("one.json:1 (row 2)")


def test_a_list_is_read_piece_by_piece_in_little_memory(write, monkeypatch):
    from rlhf_lightning.data.readers import json_values

    path = write("[" + ",\n".join(json.dumps({"text": f"é{i}" * 500}) for i in range(8_000)) + "]", "rows.json")
    assert path.stat().st_size > 2e7
    tracemalloc.start()
    count = sum(1 for _ in iter_rows(path, Problems()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8_000 and peak < 8 * json_values._PIECE
    monkeypatch.setattr(json_values, "_PIECE", 7)  # cut everywhere, in the middle of letters and numbers
    small = write('[ {"a": [1, 22], "b": "é\\"]"} ,\n{"c": 1.5e3}, {}\n] ', "small.json")
    assert [row.row for row in read_rows(small)] == [{"a": [1, 22], "b": 'é"]'}, {"c": 1500.0}, {}]


@pytest.fixture
def folder(tmp_path):
    """A folder made of names, each with a row that holds its name."""

    def make(*names):
        for name in names:
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"text": name}) + "\n")
        return tmp_path / "set"

    return make


def names(path):
    return [row.row["text"] for row in read_rows(path)]


def test_patterns_and_folders_stand_for_their_files(folder, caplog):
    found = folder("b.jsonl", "a.json", "._a.json", "notes.md", "provenance.json", "config.json")
    with caplog.at_level(logging.WARNING):
        assert names(found) == ["a.json", "b.jsonl"]
    assert "1 files of macOS (._NAME) are passed over" in caplog.text
    assert names(f"{found}/*.js*[nl]")[-2:] == ["config.json", "provenance.json"]  # whoever asks for them gets them
    assert names(f"{found}/**/b.*") == ["b.jsonl"]
    found.rename(found.with_name("a [1] b"))
    assert names(f"{found.with_name('a [1] b')}/b*.jsonl") == ["b.jsonl"]
    found.with_name("a [1] b").rename(found)
    assert exists(f"{found}/*.md") and exists("hf:owner/name") and not exists(f"{found}/*.csv")
    with pytest.raises(DataError, match=r"\*.csv: matches no file; check the pattern"):
        read_rows(f"{found}/*.csv")


def test_only_one_split_of_a_folder_is_read(folder):
    found = folder("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl")
    assert len(names(found)) == 2
    folder("test-00000-of-00001.jsonl")
    with pytest.raises(DataError, match=r"holds the splits test, train; name one, for example '.*/train\*'"):
        read_rows(found)
    assert len(names(f"{found}/train*")) == 2


def test_a_folder_of_which_a_part_is_missing_is_refused(folder):
    found = folder("train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl")
    with pytest.raises(DataError, match=r"set: holds 2 of the 3 files train-NNNNN-of-00003; fetch the others, or name"):
        read_rows(found)
    assert len(names(f"{found}/train*")) == 2
    folder("train-00001-of-00003.jsonl")
    assert len(names(found)) == 3
    (found / "more.jsonl.incomplete").touch()
    with pytest.raises(DataError, match=r"more.jsonl.incomplete is a download that did not end; fetch it again"):
        read_rows(found)


def test_the_cache_of_the_hub_is_a_folder_of_links(folder):
    found = folder("blobs/1", "snapshots/data/keep")
    (found / "snapshots/data/train.jsonl").symlink_to("../../blobs/1")
    assert names(found / "snapshots") == ["blobs/1"]


def test_rows_in_sub_folders_are_told_of_or_asked_for(folder, caplog):
    found = folder("data/a.jsonl")
    with caplog.at_level(logging.WARNING):
        assert names(found) == ["data/a.jsonl"]
    folder("more/b.jsonl")
    with pytest.raises(DataError, match=r"holds no rows itself, but its sub-folders do \(data, more\); name one"):
        read_rows(found)
    folder("c.jsonl")
    with caplog.at_level(logging.WARNING):
        assert names(found) == ["c.jsonl"]
    assert "the rows in its sub-folders (data, more) are not read" in caplog.text


def test_a_name_on_the_hub_has_a_config_and_a_split():
    assert hub_parts("hf:a/b:main:validation") == ("a/b", "main", "validation")
    for wrong in ("hf:", "hf:a:b:c:d"):
        with pytest.raises(DataError, match="write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT"):
            hub_parts(wrong)


def test_a_file_is_looked_at_and_not_read_to_tell_what_it_is(write, monkeypatch):
    asked = []
    monkeypatch.setattr(files, "head", lambda path, size: asked.append(size) or LINES.encode())
    read_rows(write(LINES))
    assert asked == [2**16]
