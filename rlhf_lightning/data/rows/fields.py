"""Check the fields of a row, for each row type: what is wrong with the first field that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.rows.shared_prompt import split_shared_prompt
from rlhf_lightning.errors import DataError
from rlhf_lightning.rules.ranges import FLOAT32_MAX

if TYPE_CHECKING:
    from rlhf_lightning.types import Row


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
        return f"{name}: the last message is from '{clipped(value[-1]['role'])}' and {must}"
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


def _shown(value: Any) -> str:
    return "null" if value is None else clipped(repr(value))


def clipped(text: str) -> str:
    """At most 80 characters of a text, for messages."""
    return text if len(text) <= 80 else f"{text[:80]}..."


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
        return f"label: is {_shown(row['label'])}; write true for a good answer and false for a bad one"
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
    return _check_margin(row)


def _check_margin(row: Row) -> str | None:
    margin = row.get("margin")
    if margin is not None and not _is_number(margin):
        return f"margin: is {_shown(margin)}; write a finite number or leave it out"
    return None


def _check_implicit_pair(row: Row) -> str | None:
    complaint = _check_pair(row)
    if complaint is None:
        try:
            split_shared_prompt(row["chosen"], row["rejected"])
        except DataError as error:
            complaint = str(error).removesuffix(".")
    return complaint


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
    for rank in ranks:
        if not _is_number(rank):
            return f"ranks: holds {_shown(rank)}; write numbers, 1 is best and equal numbers are ties"
    return _check_margin(row)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


CHECKS: dict[str, Callable[[Row], str | None]] = {
    "prompt+completions+ranks": _check_ranking,
    "prompt+chosen+rejected": _check_pair,
    "chosen+rejected": _check_implicit_pair,
    "prompt+completion+label": _check_feedback,
    "prompt+completion": _check_demonstration,
    "messages": _check_messages,
    "text": _check_text,
    "prompt": _check_prompt,
}
"""What is wrong with a row of the type, or None; the type's columns are there, if only as null."""
