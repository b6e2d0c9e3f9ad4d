import gzip
import json

import pytest

from rlhf_lightning.data.readers.files import read_rows
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.errors import DataError
from rlhf_lightning.tasks.hh import prepare_hh, turns

PARTS = ("comparisons", "judge", "prompts", "comparisons.validation")


def dialogue(prompt, answer):
    return f"\n\nHuman: {prompt}\n\nAssistant: Do you mean it?\n\nHuman: Yes.\n\nAssistant: {answer}"


def write(folder, kind, numbers, extra=()):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"chosen": dialogue(f"ask {n}?", f"good {n}"), "rejected": dialogue(f"ask {n}?", "no")} for n in numbers]
    with gzip.open(folder / f"{kind}.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in [*rows, *extra])
    return folder


@pytest.fixture
def data(tmp_path):
    """Two sub-folders; three training prompts twice, and one of them in the test dialogues."""
    write(tmp_path / "hh" / "helpful", "train", range(20))
    write(tmp_path / "hh" / "harmless", "train", range(17, 40))
    write(tmp_path / "hh" / "helpful", "test", range(39, 50))
    return tmp_path / "hh"


def read(root, name):
    return [json.loads(line) for line in (root / f"{name}.jsonl").read_text().splitlines()]


def test_no_prompt_is_in_two_parts(data, tmp_path):
    root = prepare_hh(data, tmp_path / "out")
    prompts = {name: {json.dumps(row["prompt"]) for row in read(root, name)} for name in PARTS}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values())) == 50
    assert len(prompts["comparisons"]) == 20 and len(prompts["judge"]) == len(prompts["prompts"]) == 10
    assert len(read(root, "comparisons") + read(root, "judge")) <= 30 + 3
    assert {json.dumps(row["prompt"]) for row in read(root, "prompts.validation")} == prompts["comparisons.validation"]


def test_what_is_written_is_what_the_stages_read(data, tmp_path):
    root = prepare_hh(data, tmp_path / "out", comparisons=8, prompts=4, validation=5)
    for name, kind in {
        "comparisons": "comparisons",
        "judge": "comparisons",
        "demonstrations": "demonstrations",
    }.items():
        rows = validate_rows(read_rows(root / f"{name}.jsonl"), kind)
        assert len(rows) == (4 if name == "judge" else 8)
    row = read(root, "comparisons")[0]
    number = row["prompt"][0]["content"].split()[1].rstrip("?")
    assert [turn["role"] for turn in row["prompt"]] == ["user", "assistant", "user"]
    assert row["chosen"] == [{"role": "assistant", "content": f"good {number}"}]
    assert row["rejected"] == [{"role": "assistant", "content": "no"}]
    assert read(root, "demonstrations")[0] == {"prompt": row["prompt"], "completion": row["chosen"]}
    assert len(read(root, "prompts")) == 4 and len(read(root, "demonstrations.validation")) == 5


def test_dialogues_that_differ_earlier_are_left_out_and_counted(data, tmp_path):
    odd = [
        {"chosen": dialogue("a?", "x"), "rejected": dialogue("b?", "y")},
        {"chosen": dialogue("a?", "x"), "rejected": dialogue("a?", "x")},
        {"chosen": dialogue("a?", ""), "rejected": dialogue("a?", "y")},
        {"chosen": "\n\nHuman: a?", "rejected": "\n\nHuman: a?"},
    ]
    write(data / "odd", "train", range(60, 64), odd)
    root = prepare_hh(data, tmp_path / "out")
    assert json.loads((root / "provenance.json").read_text())["metrics"]["left_out"] == 4


@pytest.mark.parametrize(
    ("row", "says"),
    [({"chosen": "\n\nHuman: a"}, "rejected: is missing"), ({"chosen": "a", "rejected": "b"}, "begins with `Human:`")],
)
def test_rows_of_another_shape_name_file_and_line(data, tmp_path, row, says):
    file = write(data / "odd", "train", [70], [row]) / "train.jsonl.gz"
    with pytest.raises(DataError, match=says) as caught:
        prepare_hh(data, tmp_path / "out")
    assert f"{file}:2: " in str(caught.value)


def test_a_folder_without_files_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"data\.root=.*no file train\*"):
        prepare_hh(tmp_path, tmp_path / "out")


def test_a_colon_within_an_answer_opens_no_turn():
    assert turns("\n\nHuman: a\n\nAssistant: He said: Human: no\nAssistant: nor this") == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "He said: Human: no\nAssistant: nor this"},
    ]
