r"""Preference data in the shape of Anthropic's HH-RLHF, brought by you: dialogues of which the last answer differs.

A row holds ``chosen`` and ``rejected``, each a whole dialogue as text, ``\n\nHuman: ...\n\nAssistant: ...``, or as
messages. The data (https://github.com/anthropics/hh-rlhf, MIT licence) is not part of this project.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.data.readers.files import read_rows
from rlhf_lightning.errors import DataError
from rlhf_lightning.tasks.folders import prepare_folder, write_jsonl

HH_STAGE = "hh"
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}
Row = dict[str, Any]


def prepare_hh(
    folders: str | Path | Sequence[str],
    root: str | Path,
    *,
    seed: int = 0,
    comparisons: int | None = None,
    prompts: int | None = None,
    validation: int = 512,
) -> Path:
    """Write demonstrations, comparisons and prompts into ``root``; a verified folder of the same settings is reused.

    The training dialogues are dealt by their prompts into three parts without a prompt in common: half of them are the
    comparisons for the reward model, whose preferred answers are the demonstrations; a quarter gives prompts for RL; a
    quarter are the comparisons of ``judge.jsonl``, for a second reward model that evaluates what the first one taught.
    Files that end in ``.validation.jsonl`` come from the test dialogues.

    Args:
        folders: one or several with files ``train*`` and ``test*`` (JSONL, packed or not), also in folders of them.
        root: the folder to write.
        seed: decides the parts and the order of the rows.
        comparisons: at most so many for the reward model, and half as many for the judge; None takes all.
        prompts: at most so many; None takes all.
        validation: rows of each validation file.

    Returns:
        ``root``.

    Raises:
        DataError: there are no such files, or no dialogue in them; names what was looked for.
        CheckpointError: ``root`` holds something else, or a damaged folder.
    """
    places = [Path(folder) for folder in ([folders] if isinstance(folders, str | Path) else folders)]
    files = {kind: _files(places, kind) for kind in ("train", "test")}
    sizes = {file.as_posix(): file.stat().st_size for found in files.values() for file in found}
    config = {"files": sizes, "seed": seed, "comparisons": comparisons, "prompts": prompts, "validation": validation}

    def write(folder: Path) -> dict[str, Any]:
        train, left_out = _dialogues(files["train"])
        test, more = _dialogues(files["test"])
        known = {_key(row) for row in train}
        groups = _groups(train, seed)
        half, rest = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        held_out = [row for group in _groups([r for r in test if _key(r) not in known], seed) for row in group]
        parts = {
            "comparisons": _flat(half)[:comparisons],
            "judge": _flat(rest[: len(rest) // 2])[: comparisons and comparisons // 2],
            "comparisons.validation": held_out[:validation],
        }
        asked = {"prompts": rest[len(rest) // 2 :], "prompts.validation": _groups(held_out[:validation], seed)}
        for name, rows in parts.items():
            write_jsonl(folder / f"{name}.jsonl", rows)
        for name in ("comparisons", "comparisons.validation"):
            shown = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in parts[name]]
            write_jsonl(folder / f"{name.replace('comparisons', 'demonstrations')}.jsonl", shown)
        for name, found in asked.items():
            kept = found[: prompts if name == "prompts" else None]
            write_jsonl(folder / f"{name}.jsonl", ({"prompt": group[0]["prompt"]} for group in kept))
        return {"left_out": left_out + more, **{name: len(rows) for name, rows in parts.items()}}

    return prepare_folder(root, HH_STAGE, config, write)


def turns(dialogue: str) -> list[dict[str, str]]:
    r"""A dialogue as messages.

    Raises:
        DataError: it does not begin with a turn of Human or Assistant.

    >>> turns("\n\nHuman: Hi!\n\nAssistant: Hello.")
    [{'role': 'user', 'content': 'Hi!'}, {'role': 'assistant', 'content': 'Hello.'}]
    """
    before, *parts = _TURN.split(dialogue)
    if before.strip() or not parts:
        raise DataError("a dialogue begins with `Human:` or `Assistant:`")
    return [{"role": _ROLES[role], "content": text.strip()} for role, text in zip(parts[::2], parts[1::2], strict=True)]


def _dialogues(files: Sequence[Path]) -> tuple[list[Row], int]:
    """Rows ``prompt, chosen, rejected`` as messages, and how many differ in more than their last answer."""
    rows, left_out = [], 0
    for located in (row for file in files for row in read_rows(file)):
        try:
            row = _row(located.row)
        except DataError as error:
            raise DataError(f"{located.where}: {error}") from None
        if row is None:
            left_out += 1
        else:
            rows.append(row)
    if not rows:
        raise DataError(f"{files[0]}: no dialogue of which only the last answer differs")
    return rows, left_out


def _row(row: Mapping[str, Any]) -> Row | None:
    if missing := [name for name in ("chosen", "rejected") if name not in row]:
        raise DataError(f"{missing[0]}: is missing; rows hold chosen and rejected")
    chosen, rejected = (turns(text) if isinstance(text := row[name], str) else text for name in ("chosen", "rejected"))
    *prompt, answer = chosen
    *other, worse = rejected
    whole = prompt and answer["role"] == worse["role"] == "assistant" and answer["content"] and worse["content"]
    if not whole or prompt != other or answer == worse or not all(turn["content"] for turn in prompt):
        return None
    return {"prompt": prompt, "chosen": [answer], "rejected": [worse]}


def _groups(rows: Sequence[Row], seed: int) -> list[list[Row]]:
    """Rows with the same prompt together, the groups in random order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    found = [groups[key] for key in sorted(groups)]
    random.Random(seed).shuffle(found)
    return found


def _flat(groups: Sequence[Sequence[Row]]) -> list[Row]:
    return [row for group in groups for row in group]


def _key(row: Row) -> str:
    return "\0".join(f"{turn['role']}\0{turn['content']}" for turn in row["prompt"])


def _files(places: Sequence[Path], kind: str) -> list[Path]:
    """The files of a kind, below some folders.

    Raises:
        DataError: there are none.
    """
    found = sorted(file for place in places for file in place.rglob(f"{kind}*") if file.is_file())
    if not found:
        shown = ", ".join(map(str, places))
        raise DataError(f"data.root={shown}: no file {kind}*.jsonl or {kind}*.jsonl.gz in it or below; fetch the data")
    return found
