"""Mutated rows of every known shape and files of every container: taken, or refused by name; nothing is lost."""

import json
import random
import string

import pytest

from rlhf_lightning.data.readers.files import LocatedRow, iter_rows
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.data.rows.keys import MESSAGE_KEYS, ROW_KEYS
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.errors import DataError
from tests.data.readers.test_containers import TAKEN as CONTAINERS
from tests.data.test_shapes import TAKEN

KINDS = ["demonstrations", "comparisons", "feedback", "prompts"]
CONSUMED = ("system", "gpt", "human", "User", "model", "observation", "function_call", "text",
            "input_text", "output_text", "System", "Chatbot", "function")  # fmt: skip  # roles, and the type of parts
NAMES = [*ROW_KEYS, *MESSAGE_KEYS, "prompts", "Question", "context", "extra"]


def word(draw):
    return "".join(draw.choices(string.ascii_lowercase, k=9))


def values(draw):
    turn = {"role": draw.choice(["user", "assistant", "gpt", "critic", word(draw)]), "content": word(draw)}
    one, two = {"role": ["user"], "content": [word(draw)]}, [{"type": "text", "text": word(draw)}]
    return draw.choice([
        None, True, False, 0, 1, 2.5, -3, float("inf"), "", " ", word(draw), [], {}, [word(draw)], one, two, turn,
        [turn],
        [turn, {**turn, "role": "assistant"}], json.dumps([turn]), str([turn]), str([turn])[:-3], [[turn]], [1, 2],
        [2, 1],
        "[1, 2]", [{"type": "function", "function": {"name": word(draw)}}], [word(draw), word(draw)],
        {word(draw): word(draw)},
    ])  # fmt: skip


def places(value, found):
    """Every dict and list of a row."""
    if isinstance(value, (dict, list)):
        found.append(value)
        for inner in value.values() if isinstance(value, dict) else value:
            places(inner, found)
    return found


def mutate(row, draw):
    for _ in range(draw.randint(1, 3)):
        place = draw.choice(places(row, []))
        if isinstance(place, list):
            if place and draw.random() < 0.7:
                place[draw.randrange(len(place))] = values(draw)
            else:
                place.append(values(draw))
        elif place and draw.random() < 0.3:
            place.pop(draw.choice(list(place)))
        else:
            place[draw.choice([*place, draw.choice(NAMES)])] = values(draw)
    return row


def leaves(value):
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from leaves(inner)


def check_row(row, kind):
    """Whether the row is taken; fails unless it is refused by name, or all words of it are still there."""
    problems = Problems()
    before = json.dumps(row, default=str)
    sound = validate_rows([LocatedRow(row, "f", 1)], kind, problems)
    assert json.dumps(row, default=str) == before, "the row of the file was changed"
    assert len(sound) + problems.count == 1
    if not sound:
        assert problems.first[0].startswith("f:1: ") and len(problems.first[0]) < 700
        return False
    kept = "\n".join(leaves(sound[0].row))
    for text in leaves({name: value for name, value in row.items() if name != "text"}):
        flattened = text.lstrip().startswith(("[", "{"))  # its words are leaves of their own now
        assert flattened or text.strip() in kept or text in CONSUMED, (text, sound[0].row)
    return True


def fuzz_rows(number, rows, seed):
    kind, row, _ = TAKEN[number]
    draw = random.Random(f"{number} {seed}")
    text = json.dumps(row)
    return sum(check_row(mutate(json.loads(text), draw), draw.choice([kind, kind, *KINDS])) for _ in range(rows))


def fuzz_container(folder, name, count, seed):
    content = CONTAINERS[name]
    content = content if isinstance(content, bytes) else content.encode()
    draw = random.Random(f"{name} {seed}")
    path = folder / name
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(changed) or 1)
            kind = draw.random()
            if kind < 0.4 and changed:
                changed[place] ^= 1 << draw.randrange(8)
            elif kind < 0.6:
                changed[place:place] = draw.choice(
                    [b"\n", b'"', b",", b"[", b"]", b"{", b"}", b"\\", b"\x00", b"\xff", b";"]
                )
            elif kind < 0.8:
                del changed[place : place + draw.randint(1, 9)]
            else:
                del changed[place:]
        path.write_bytes(changed)
        problems = Problems()
        try:
            rows = list(iter_rows(path, problems))
        except DataError as error:
            assert str(error).startswith(str(path)) and len(str(error)) < 600, error
            continue
        assert rows or problems.count
        assert all(type(row.row) is dict and row.where.startswith(f"{path}:") for row in rows)


def test_mutated_rows_of_every_shape_are_taken_whole_or_refused_by_name():
    taken = [fuzz_rows(number, 15, seed=0) for number in range(len(TAKEN))]
    assert 0.1 * 15 * len(TAKEN) < sum(taken) < 0.9 * 15 * len(TAKEN)


def test_mutated_files_are_read_or_refused_by_name(tmp_path):
    for name in CONTAINERS:
        fuzz_container(tmp_path, name, 15, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(len(TAKEN)))
def test_ten_thousand_mutated_rows_of_every_shape_are_taken_whole_or_refused_by_name(number):
    fuzz_rows(number, 10_000, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("name", CONTAINERS)
def test_two_thousand_mutated_files_of_every_container_are_read_or_refused_by_name(tmp_path, name):
    fuzz_container(tmp_path, name, 2_000, seed=1)
