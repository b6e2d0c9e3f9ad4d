"""Mutated rows of every type: each line is accepted or named as a problem, and nothing but `DataError` is raised."""

import json
import random
import re
from collections import Counter

import pytest

from benchmarks.data_rows import ROWS
from rlhf_lightning.data import ComparisonData, DemonstrationData, FeedbackData, PromptData
from rlhf_lightning.data.readers.files import iter_rows
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.data.rows.types import ROW_TYPES
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.errors import DataError
from tests.support import tiny

USER, ASSISTANT = {"role": "user", "content": "the food"}, {"role": "assistant", "content": "was good"}
VALUES = [
    None, True, 0, -1, 2.5, 10**400, 1e300, float("nan"), float("inf"), {}, {"role": "user"},
    "", " \n", "was", "x" * 2000, "a\x00b", "\ud800", "\U0001f600 ünï", "null",
    [], [[]], [1, 2], [1, 1], [None, float("nan")], ["was", "good"],
    [USER], [ASSISTANT], [USER, ASSISTANT], [USER, None], [{"role": 3}], [{**USER, "x": [[[]]]}],
    [{"role": "user", "content": ["a"]}],
]  # fmt: skip
NAMES = sorted({column for columns in ROW_TYPES.values() for column in columns} | {"margin", "subset", "extra", ""})


def base(name, number):
    """A sound row of the type; every other one holds messages where it can."""
    row = ROWS[name][1](number)
    if number % 2 and name not in ("text", "messages"):
        start = [] if "prompt" in row else [{"role": "user", "content": str(number)}]
        for column in {"completion", "chosen", "rejected"} & set(row):
            row[column] = [*start, {**ASSISTANT, "content": row[column]}]
        if "completions" in row:
            row["completions"] = [[{**ASSISTANT, "content": text}] for text in row["completions"]]
        if "prompt" in row:
            row["prompt"] = [{**USER, "content": row["prompt"]}]
    return row


def mutated(row, draw):
    """A row as bytes, without a line end unless a byte became one; and whether it is still the clean row."""
    row, kind = dict(row), draw.random()
    if kind < 0.2:
        return dumped(row), True
    if kind < 0.6:
        for _ in range(draw.randint(1, 2)):
            change_field(row, draw)
        return dumped(row), False
    return change_bytes(dumped(row), draw), False


def change_field(row, draw):
    name = draw.choice([*row, draw.choice(NAMES)])
    if draw.random() < 0.25:
        row.pop(name, None)
    elif isinstance(row.get(name), list) and row[name] and draw.random() < 0.5:  # inside a list
        row[name] = list(row[name])
        row[name][draw.randrange(len(row[name]))] = draw.choice(VALUES)
    else:
        row[name] = draw.choice(VALUES)


def dumped(row):
    return json.dumps(row).encode()


def change_bytes(line, draw):
    place, kind = draw.randrange(len(line)), draw.randrange(10)
    if kind == 0:
        return line[:place]  # truncated
    if kind == 1:
        return line + draw.choice([b"", b" ", b","]) + line  # two objects
    if kind == 2:
        return line[:-1] + b",}"
    if kind == 3:
        depth = draw.choice([10, 63, 64, 900, 20_000])
        nested = draw.choice([b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth])
        return line[:-1] + b', "deep": ' + nested + b"}"
    if kind == 4:
        return line[:-1] + b', "big": ' + b"9" * draw.choice([100, 4300, 4301, 50_000]) + b"}"
    if kind == 5:
        insert = draw.choice(
            [b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\\u0000", b"\\ud83d", b"\xc3", b"\\", b'"', b"\n"]
        )
        return line[:place] + insert + line[place:]
    if kind == 6:
        return line[:place] + line[place + 1 :]
    changed = bytearray(line)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(line))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def fuzz(folder, name, rows, seed):
    """Lines of the file, problems and accepted rows; fails unless every line is one or the other, with its place."""
    kind = ROWS[name][0]
    draw = random.Random(f"{name} {seed}")
    made = [mutated(base(name, i), draw) for i in range(rows)]
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in made))
    lines = path.read_bytes().split(b"\n")
    full = {number for number, line in enumerate(lines, start=1) if line.strip()}
    problems = Problems(shown=10 * rows, alike=10 * rows)
    accepted = validate_rows(iter_rows(path, problems), kind, problems)
    form = re.compile(rf"{re.escape(str(path))}:(\d+)(:\d+)?: \S.*\.", re.DOTALL)
    places = [form.fullmatch(problem) for problem in problems.first]
    assert all(places), problems.first[places.index(None)]
    assert all(len(problem) < 600 for problem in problems.first)
    good, bad = [row.line for row in accepted], [int(place[1]) for place in places]
    assert sorted(good + bad) == sorted(full)
    assert len(bad) == problems.count
    clean = {dumped(base(name, i)) for i in range(rows)}
    assert {number for number, line in enumerate(lines, start=1) if line in clean} <= set(good)
    for row in accepted:  # by another reader: an object with the columns of one row type
        value = json.loads(lines[row.line - 1].decode("utf-8-sig"))
        assert any(all(value.get(column) not in (None, "", []) for column in ROW_TYPES[t]) for t in ROW_TYPES), value
    assert len(bad) > rows // 4 < len(good)
    return accepted


@pytest.mark.parametrize("name", ROWS)
def test_ten_thousand_mutated_rows_of_each_type_are_accepted_or_named(tmp_path, name):
    fuzz(tmp_path, name, 10_000, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("name", ROWS)
def test_two_hundred_thousand_mutated_rows_of_each_type_are_accepted_or_named(tmp_path, name):
    for seed in range(1, 21):
        fuzz(tmp_path, name, 10_000, seed)


MODULES = {
    "demonstrations": DemonstrationData,
    "comparisons": ComparisonData,
    "feedback": FeedbackData,
    "prompts": PromptData,
}


@pytest.mark.parametrize("name", ROWS)
def test_whatever_was_accepted_can_be_encoded_or_is_named(tmp_path, name):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
    data = MODULES[ROWS[name][0]](tmp_path / "none.jsonl", None, tokenizer, batch_size=2, validation_fraction=0.0)
    for row in fuzz(tmp_path, name, 300, seed=1):
        counts = Counter()
        try:
            items = data.encode([row], counts)
        except DataError as error:
            assert str(error).startswith(row.where)
        else:
            assert items or counts["dropped"] or counts["undecided"]


def test_every_row_of_a_mutated_csv_file_is_accepted_or_named(tmp_path):
    draw = random.Random(0)
    path = tmp_path / "rows.csv"
    clean = [f'"was {i}, good",bad,{i}\n'.encode() for i in range(20)]
    for _ in range(300):
        lines = list(clean)
        for place in draw.sample(range(20), draw.randint(0, 3)):
            lines[place] = change_bytes(lines[place][:-1], draw) + b"\n"
        path.write_bytes(b"prompt,completion,id\n" + b"".join(lines))
        problems = Problems(shown=100, alike=100)
        accepted = validate_rows(iter_rows(path, problems), "demonstrations", problems)
        good = {row.line: row for row in accepted}
        bad = {int(problem.split(":")[1]) for problem in problems.first}
        assert len(good) == len(accepted) and not bad & set(good)
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if number == 1 or not line.strip() or number in bad | set(good):
                continue
            start = max(place for place in bad | set(good) if place < number)  # the row that this line belongs to
            assert start in bad or "\n" in "".join(good[start].row.values())
        if lines == clean:
            assert sorted(good) == list(range(2, 22)) and not bad
