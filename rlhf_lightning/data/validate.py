"""Check rows before anything is encoded: their type, their fields, and how much of the data repeats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rlhf_lightning.data.problems import Problems
from rlhf_lightning.data.sources import LocatedRow
from rlhf_lightning.types import Row

StageKind = Literal["demonstrations", "comparisons", "prompts", "feedback"]

ROW_TYPES: dict[str, tuple[str, ...]] = {  # most demanding first; the first whose columns are all there is the type
    "prompt+completions+ranks": ("prompt", "completions", "ranks"),
    "prompt+chosen+rejected": ("prompt", "chosen", "rejected"),
    "chosen+rejected": ("chosen", "rejected"),
    "prompt+completion+label": ("prompt", "completion", "label"),
    "prompt+completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
    "prompt": ("prompt",),
}
TAKEN: dict[StageKind, tuple[str, ...]] = {
    "demonstrations": ("prompt+completion", "messages", "text"),
    "comparisons": ("prompt+completions+ranks", "prompt+chosen+rejected", "chosen+rejected"),
    "prompts": ("prompt",),
    "feedback": (
        "prompt+completion+label",
        "prompt+completions+ranks",
        "prompt+chosen+rejected",
        "chosen+rejected",
    ),
}
_STAGE = {
    "demonstrations": "supervised fine-tuning (demonstrations)",
    "comparisons": "the reward model (comparisons)",
    "prompts": "sampling and PPO (prompts)",
    "feedback": "KTO (feedback)",
}


def row_type(row: Row, stage_kind: StageKind) -> str | None:
    """The row type, judged by the columns that are not null; types that the stage takes come first."""
    for present in ({k for k, v in row.items() if v is not None}, set(row)):
        taken = [name for name in ROW_TYPES if name in TAKEN[stage_kind]]
        found = next((name for name in taken if present.issuperset(ROW_TYPES[name])), None)
        if found:
            return found
    present = {k for k, v in row.items() if v is not None}
    return next((name for name, columns in ROW_TYPES.items() if present.issuperset(columns)), None)


def validate_rows(rows: Sequence[LocatedRow], stage_kind: StageKind) -> list[LocatedRow]:
    """The rows, once all of them are known to be of a type that the stage takes, with sound fields.

    Args:
        rows: as `read_rows` returns them.
        stage_kind: "demonstrations", "comparisons", "prompts" or "feedback".

    Raises:
        DataError: names file, line, field and reason of the first bad rows, and how many there are.
    """
    problems = Problems()
    for row in rows:
        complaint = _complaint(row.row, stage_kind)
        if complaint:
            problems.add(f"{row.where}: {complaint}.")
    problems.raise_any(len(rows))
    return list(rows)


def identity(row: Row, stage_kind: StageKind) -> str:
    """Equal for rows that train the same thing: the columns of the row type, without the unknown ones."""
    return _canonical([row[column] for column in ROW_TYPES[str(row_type(row, stage_kind))]])


def prompt_identity(row: Row, stage_kind: StageKind) -> str:
    """Equal for rows with the same prompt; the whole row where the prompt is not a column of its own."""
    return _canonical(row["prompt"]) if row.get("prompt") is not None else identity(row, stage_kind)


def count_repeated(train: Sequence[str], validation: Sequence[str]) -> tuple[int, int]:
    """How many training rows repeat an earlier one, and how many validation rows are also in training."""
    seen = set(train)
    return len(train) - len(seen), sum(key in seen for key in validation)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _complaint(row: Row, stage_kind: StageKind) -> str | None:
    kind = row_type(row, stage_kind)
    takes = " or ".join(TAKEN[stage_kind])
    if kind is None:
        return f"columns {', '.join(sorted(row)) or 'none'} are no known row type; {_STAGE[stage_kind]} takes {takes}"
    if kind not in TAKEN[stage_kind]:
        owner = next(_STAGE[stage] for stage, kinds in TAKEN.items() if kind in kinds)
        return f"found a {kind} row, which is for {owner}; {_STAGE[stage_kind]} takes {takes}"
    return _CHECKS[kind](row)


# ------------------------------------------------------------------------------------------------------ the fields


def is_conversation(value: Any) -> bool:
    """A list of messages rather than text."""
    return isinstance(value, list)


def _content(name: str, value: Any, *, ends_with_assistant: bool | None = None) -> str | None:
    """What is wrong with a text or a list of messages."""
    if isinstance(value, str):
        return f"{name}: is empty; fill it or delete the row" if not value.strip() else None
    if not isinstance(value, list):
        return f"{name}: is {_named(value)}; write text or a list of messages"
    if not value:
        return f"{name}: has no messages; fill it or delete the row"
    for number, message in enumerate(value):
        complaint = _message(f"{name}[{number}]", message)
        if complaint:
            return complaint
    is_assistant = value[-1]["role"] == "assistant"
    if ends_with_assistant is not None and is_assistant is not ends_with_assistant:
        must = "must be from the assistant" if ends_with_assistant else "must not be from the assistant"
        return f"{name}: the last message is from '{value[-1]['role']}' and {must}"
    return None


def _message(name: str, message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return f'{name}: is {_named(message)}; write {{"role": ..., "content": ...}}'
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            return f"{name}.{key}: is {_named(message.get(key))}; write text"
        if not message[key].strip() and (key == "role" or message["role"] != "system"):
            return f"{name}.{key}: is empty; fill it or delete the row"
    return None


def _named(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _check_prompt(row: Row) -> str | None:
    return _content("prompt", row["prompt"], ends_with_assistant=False)


def _answers(row: Row, names: Sequence[str]) -> str | None:
    """Answers are text where the prompt is text, and messages where it is messages."""
    for name in names:
        complaint = _content(name, row[name], ends_with_assistant=True)
        if complaint:
            return complaint
    kinds = {name: is_conversation(row[name]) for name in (*names, "prompt") if row.get(name) is not None}
    if len(set(kinds.values())) > 1:
        as_messages = ", ".join(sorted(name for name, conversational in kinds.items() if conversational))
        return f"{as_messages}: a list of messages beside text; write all of {', '.join(kinds)} one way"
    return None


def _check_demonstration(row: Row) -> str | None:
    return _check_prompt(row) or _answers(row, ["completion"])


def as_label(value: Any) -> bool | None:
    """A label as a bool: true, false, 1, 0, or these words as text (CSV knows no other); None for anything else.

    >>> as_label("False"), as_label(1), as_label("good")
    (False, True, None)
    """
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def _check_feedback(row: Row) -> str | None:
    complaint = _check_demonstration(row)
    if complaint is None and as_label(row["label"]) is None:
        shown = "null" if row["label"] is None else repr(row["label"])
        return f"label: is {shown}; write true for a good answer and false for a bad one"
    return complaint


def _check_messages(row: Row) -> str | None:
    if not isinstance(row["messages"], list):
        return f"messages: is {_named(row['messages'])}; write a list of messages"
    complaint = _content("messages", row["messages"])
    if complaint:
        return complaint
    if not any(message["role"] == "assistant" for message in row["messages"]):
        return "messages: no message is from the assistant, so there is nothing to learn; add one or delete the row"
    return None


def _check_text(row: Row) -> str | None:
    if not isinstance(row["text"], str):
        return f"text: is {_named(row['text'])}; write text"
    return _content("text", row["text"])


def _check_pair(row: Row) -> str | None:
    complaint = (_check_prompt(row) if row.get("prompt") is not None else None) or _answers(row, ["chosen", "rejected"])
    if complaint:
        return complaint
    if row["chosen"] == row["rejected"]:
        return "rejected: is the same as chosen, so nothing is preferred; delete the row"
    margin = row.get("margin")
    if margin is not None and not _is_number(margin):
        return f"margin: is {margin!r}; write a finite number or leave it out"
    return None


def _check_ranking(row: Row) -> str | None:
    complaint = _check_prompt(row)
    if complaint:
        return complaint
    completions, ranks = row["completions"], row["ranks"]
    for name, value in (("completions", completions), ("ranks", ranks)):
        if not isinstance(value, list):
            return f"{name}: is {_named(value)}; write a list"
    if len(completions) < 2:
        return f"completions: has {len(completions)} answers; a ranking needs 2 or more"
    if len(ranks) != len(completions):
        return f"ranks: has {len(ranks)} numbers for {len(completions)} completions; give each answer one"
    flat: dict[str, Any] = {"prompt": row["prompt"]} | {f"completions[{i}]": c for i, c in enumerate(completions)}
    complaint = _answers(flat, [name for name in flat if name != "prompt"])
    if complaint:
        return complaint
    bad = next((rank for rank in ranks if not _is_number(rank)), None)
    if bad is not None or None in ranks:
        return f"ranks: holds {bad!r}; write numbers, 1 is best and equal numbers are ties"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_CHECKS: dict[str, Callable[[Row], str | None]] = {
    "prompt+completions+ranks": _check_ranking,
    "prompt+chosen+rejected": _check_pair,
    "chosen+rejected": _check_pair,
    "prompt+completion+label": _check_feedback,
    "prompt+completion": _check_demonstration,
    "messages": _check_messages,
    "text": _check_text,
    "prompt": _check_prompt,
}
