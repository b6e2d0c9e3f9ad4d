"""Rows of a command that was interrupted are kept, and the file that it leaves in the end is the same."""

import argparse
import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from rlhf_lightning.checkpoint.places import lock
from rlhf_lightning.cli import generate
from rlhf_lightning.cli.arguments import check_new, rows_to
from rlhf_lightning.cli.resumed import resumed_rows
from rlhf_lightning.console import streams
from rlhf_lightning.errors import CheckpointError, ConfigError, DiskError

UNIT, COUNT = 3, 8


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a file of prompts and the folder of a model."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "the"}\n')
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    return tmp_path


def typed(**others):
    words = {"folder": "model", "prompts": "prompts.jsonl", "out": "new/answers.jsonl", "temperature": None, "seed": 0}
    return argparse.Namespace(**words | others)


def make(dies_at=None, **others):
    """Write the rows 0 to 7; returns the numbers of those that were made now."""
    made = []
    with resumed_rows(typed(**others), ("folder", "prompts"), torch.device("cpu"), UNIT) as (kept, write):
        assert kept == [{"row": number, "é": [0.1]} for number in range(len(kept))]
        for number in range(len(kept), COUNT):
            if number == dies_at:
                raise KeyError
            write({"row": number, "é": [0.1]})
            made.append(number)
    return made


def interrupted(dies_at):
    with suppress(KeyError):
        make(dies_at)


def there(place):
    return sorted(entry.name for entry in (place / "new").iterdir())


@pytest.mark.parametrize(("dies_at", "again"), [(0, 0), (1, 0), (3, 3), (5, 3), (7, 6)])
@pytest.mark.parametrize("tail", ["", '{"row": 9', "null"])
def test_whole_units_are_kept_and_the_file_is_the_same_in_the_end(place, dies_at, again, tail, capsys):
    interrupted(dies_at)
    assert there(place) == ["answers.jsonl.part", "answers.jsonl.settings.part"] * bool(dies_at)
    if dies_at:
        with open("new/answers.jsonl.part", "a") as stream:
            stream.write(tail)
        kept = "new/answers.jsonl.part: {} rows are kept; the same command goes on behind them"
        assert kept.format(dies_at) in capsys.readouterr().err
    assert make() == list(range(again, COUNT))
    assert there(place) == ["answers.jsonl"]
    lines = Path("new/answers.jsonl").read_text().splitlines()
    assert lines == [json.dumps({"row": number, "é": [0.1]}, ensure_ascii=False) for number in range(COUNT)]


def test_a_command_that_kept_no_row_leaves_nothing_in_the_way(place):
    interrupted(1)
    interrupted(0)
    assert there(place) == []
    assert make(seed=1) == list(range(COUNT))


@pytest.mark.parametrize(
    ("others", "says"),
    [({"temperature": 0.5}, r"with --temperature nothing \(now 0.5\)\. Give"), ({"seed": 1}, r"--seed 0 \(now 1\)")],
)
def test_rows_that_are_made_otherwise_are_not_gone_on_with(place, others, says):
    interrupted(5)
    before = Path("new/answers.jsonl.part").read_bytes()
    with pytest.raises(ConfigError, match=says):
        make(**others)
    assert Path("new/answers.jsonl.part").read_bytes() == before
    assert make(out="other.jsonl", **others) == list(range(COUNT))
    Path("new/answers.jsonl.part").unlink()
    assert make(**others) == list(range(COUNT))


def test_another_file_or_model_is_known_by_what_it_holds(place):
    interrupted(5)
    Path("prompts.jsonl").rename("moved.jsonl")
    Path("model/config.json").write_text('{"vocab_size": 2}')
    with pytest.raises(ConfigError, match=r"was interrupted, with another FOLDER\. Give the same as then, delete new/"):
        make(prompts="moved.jsonl")
    Path("model/config.json").write_text("{}")
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match="was interrupted, with another PROMPTS"):
        make()
    assert make(prompts="moved.jsonl") == [3, 4, 5, 6, 7]


def foreign_rows(part, record):
    part.write_text("mine")


def foreign_record(part, record):
    record.write_text("mine")


def lost_record(part, record):
    interrupted(5)
    record.write_text("{")


def link_to_nowhere(part, record):
    part.symlink_to("nowhere")


def link_to_rows(part, record):
    interrupted(5)
    part.rename("mine")
    part.symlink_to("../mine")


@pytest.mark.parametrize("left", [foreign_rows, foreign_record, lost_record, link_to_nowhere, link_to_rows])
def test_what_the_command_has_not_left_is_named_so_and_stays(place, left):
    Path("new").mkdir()
    left(Path("new/answers.jsonl.part"), Path("new/answers.jsonl.settings.part"))
    before = {entry: entry.exists() and entry.read_bytes() for entry in Path("new").iterdir()}
    named = next(iter(sorted(before)))
    with pytest.raises(ConfigError, match=rf"{named} is there, which this command has not left.*delete it"):
        make()
    assert {entry: entry.exists() and entry.read_bytes() for entry in Path("new").iterdir()} == before


def test_rows_that_are_damaged_are_left_as_they_are(place):
    interrupted(5)
    left = b"\0" * 9 + b"\n" + Path("new/answers.jsonl.part").read_bytes()
    Path("new/answers.jsonl.part").write_bytes(left)
    with pytest.raises(CheckpointError, match=r"answers\.jsonl\.part: is damaged \(.*delete it to begin again"):
        make()
    assert Path("new/answers.jsonl.part").read_bytes() == left


def test_a_file_that_another_process_writes_or_has_written_is_left_alone(place):
    Path("new").mkdir()
    with lock(Path("new/answers.jsonl")), pytest.raises(CheckpointError, match=r"answers\.jsonl: in use by process"):
        make()
    Path("new/answers.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        make()
    assert there(place) == ["answers.jsonl"]


def test_a_folder_and_a_name_that_is_too_long_are_told_and_leave_nothing(place):
    with pytest.raises(ConfigError, match="--out new/: is a folder; name a file in it"):
        generate.run(["model", "prompts.jsonl", "--out", "new/"])
    assert not Path("new").exists()
    for length in (240, 300):
        with pytest.raises(DiskError, match="cannot write here"):
            make(out="a" * length)


def test_a_record_that_somebody_has_deleted_meanwhile_is_not_missed(place):
    with resumed_rows(typed(), ("folder", "prompts"), torch.device("cpu"), UNIT) as (_, write):
        write({"row": 0})
        Path("new/answers.jsonl.settings.part").unlink()
    assert there(place) == ["answers.jsonl"]


def test_a_row_that_the_disk_does_not_take_is_named_and_leaves_no_half(place, monkeypatch):
    write = streams.os.write
    with monkeypatch.context() as small:
        small.setattr(streams.os, "write", lambda to, data: full() if b"5" in data else write(to, data[:4]))
        with pytest.raises(DiskError, match=r"--out new/answers\.jsonl: cannot write here \(.*No space left"):
            make()
    assert Path("new/answers.jsonl.part").read_text().count("\n") == 5
    assert make() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("option", ["--out", "--output", "--figure"])
def test_a_link_to_nowhere_is_refused_as_a_new_file(place, option):
    Path("link").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=f"{option} link: is a link to nowhere, which is not there; delete it"):
        check_new(option, "link")
    with pytest.raises(DiskError, match=r"--out link: cannot write here .*File exists"), rows_to("link"):
        pass  # it was made after the command had looked
    assert Path("link").is_symlink() and not Path("nowhere").exists()


def test_an_error_of_what_makes_the_rows_is_not_one_of_the_file(place):
    with pytest.raises(TimeoutError), rows_to("rows.jsonl") as write:
        write({"row": 0})
        raise TimeoutError
    assert Path("rows.jsonl").read_text() == '{"row": 0}\n'


def full():
    raise OSError(28, "No space left on device")
