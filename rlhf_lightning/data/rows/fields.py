"""Check the fields of a row, for each row type; what is wrong with the first field that is gets raised as `BadRow`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.readers.problems import BadRow
from rlhf_lightning.data.rows.shared_prompt import split_shared_prompt
from rlhf_lightning.errors import DataError
from rlhf_lightning.rules.ranges import FLOAT32_MAX

if TYPE_CHECKING:
    from rlhf_lightning.types import Row


def _content(name: str, value: Any, *, ends_with_assistant: bool | None = None) -> None:
    """A text or a list of messages."""
    if isinstance(value, str):
        if not value or value.isspace():
            raise BadRow(f"{name}: is empty; fill it or delete the row")
        return
    if not isinstance(value, list):
        raise BadRow(f"{name}: is {_named(value)}; write text or a list of messages")
    if not value:
        raise BadRow(f"{name}: has no messages; fill it or delete the row")
    for number, message in enumerate(value):
        _message(f"{name}[{number}]", message)
    last = value[-1]["role"]
    if ends_with_assistant is not None and (last == "assistant") is not ends_with_assistant:
        must = "must be from the assistant" if ends_with_assistant else "must not be from the assistant"
        raise BadRow(f"{name}: the last message is from '{clipped(last)}' and {must}")


def _message(name: str, message: Any) -> None:
    if not isinstance(message, Mapping):
        raise BadRow(f'{name}: is {_named(message)}; write {{"role": ..., "content": ...}}')
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise BadRow(f"{name}.{key}: is {_named(message.get(key))}; write text")
        if not message[key].strip() and (key == "role" or not _may_be_empty(message)):
            raise BadRow(f"{name}.{key}: is empty; fill it or delete the row")


def _may_be_empty(message: Mapping[str, Any]) -> bool:
    """System and tool turns, and turns that hold calls or thoughts instead of text."""
    if message["role"] in ("system", "developer", "tool", "function", "ipython"):
        return True
    return any(message.get(key) for key in ("tool_calls", "reasoning_content", "reasoning", "thinking"))


def _shown(value: Any) -> str:
    return "null" if value is None else clipped(repr(value))


def clipped(text: str) -> str:
    """At most 80 characters of a text, for messages."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def _named(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _check_prompt(row: Row) -> None:
    _content("prompt", row["prompt"], ends_with_assistant=False)


def _answers(row: Row, names: Sequence[str]) -> None:
    """Answers are text where the prompt is text, and messages where it is messages."""
    for name in names:
        _content(name, row[name], ends_with_assistant=True)
    given = [name for name in (*names, "prompt") if row.get(name) is not None]
    conversations = sorted(name for name in given if isinstance(row[name], list))
    if 0 < len(conversations) < len(given):
        raise BadRow(
            f"{', '.join(conversations)}: a list of messages beside text; write all of {', '.join(given)} one way"
        )


def _check_demonstration(row: Row) -> None:
    _check_prompt(row)
    _answers(row, ["completion"])


def as_label(value: Any) -> bool | None:
    """A label as a bool: true, false, 1, 0, or these words as text (CSV knows no other); None for anything else.

    >>> as_label("False"), as_label(1), as_label("good")
    (False, True, None)
    """
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def _check_feedback(row: Row) -> None:
    _check_demonstration(row)
    if as_label(row["label"]) is None:
        raise BadRow(f"label: is {_shown(row['label'])}; write true for a good answer and false for a bad one")


def _check_messages(row: Row) -> None:
    if not isinstance(row["messages"], list):
        raise BadRow(f"messages: is {_named(row['messages'])}; write a list of messages")
    _content("messages", row["messages"])
    answers = [message for message in row["messages"] if message["role"] == "assistant"]
    if answers and all(message.get("weight") == 0 for message in answers):
        raise BadRow("messages: every turn of the assistant has weight 0, so there is nothing to learn; delete the row")
    if not answers:
        raise BadRow(
            "messages: no message is from the assistant, so there is nothing to learn; add one or delete the row"
        )


def _check_text(row: Row) -> None:
    if not isinstance(row["text"], str):
        raise BadRow(f"text: is {_named(row['text'])}; write text")
    _content("text", row["text"])


def _check_pair(row: Row) -> None:
    if row.get("prompt") is not None:
        _check_prompt(row)
    _answers(row, ["chosen", "rejected"])
    if row["chosen"] == row["rejected"]:
        raise BadRow("rejected: is the same as chosen, so nothing is preferred; delete the row")
    _check_margin(row)


def _check_margin(row: Row) -> None:
    margin = row.get("margin")
    if margin is not None and not _is_number(margin):
        raise BadRow(f"margin: is {_shown(margin)}; write a finite number or leave it out")


def _check_implicit_pair(row: Row) -> None:
    _check_pair(row)
    try:
        split_shared_prompt(row["chosen"], row["rejected"])
    except DataError as error:
        raise BadRow(str(error).removesuffix(".")) from error


def _check_ranking(row: Row) -> None:
    _check_prompt(row)
    completions, ranks = row["completions"], row["ranks"]
    for name, value in (("completions", completions), ("ranks", ranks)):
        if not isinstance(value, list):
            raise BadRow(f"{name}: is {_named(value)}; write a list")
    if len(completions) < 2:
        raise BadRow(f"completions: has {len(completions)} answers; a ranking needs 2 or more")
    if len(ranks) != len(completions):
        raise BadRow(f"ranks: has {len(ranks)} numbers for {len(completions)} completions; give each answer one")
    answers: dict[str, Any] = {f"completions[{i}]": answer for i, answer in enumerate(completions)}
    _answers({"prompt": row["prompt"]} | answers, list(answers))
    for rank in ranks:
        if not _is_number(rank):
            raise BadRow(f"ranks: holds {_shown(rank)}; write numbers, 1 is best and equal numbers are ties")
    first = 0 if 0 in ranks else 1
    if (bad := next((rank for rank in ranks if not first <= rank < first + len(ranks)), None)) is not None:
        raise BadRow(
            f"ranks: holds {_shown(bad)} for {len(ranks)} completions; {first} is best and {first + len(ranks) - 1} the"
            " last. If higher is better, call the column scores"
        )
    _check_margin(row)


_JOINED = {  # column of the answer, or the first of several
    "prompt+completion": "completion",
    "prompt+completion+label": "completion",
    "prompt+chosen+rejected": "chosen",
    "prompt+completions+ranks": "completions",
}


def joint(row: Row, kind: str) -> str | None:
    """What is odd where prompt and answer meet: no white space on either side, between words; None if all is well."""
    name = _JOINED.get(kind)
    if name is None:
        return None
    prompt, answer = row["prompt"], row[name]
    if not isinstance(prompt, str) or prompt[-1].isspace():
        return None
    answer = answer[0] if isinstance(answer, list) else answer
    if not isinstance(answer, str) or answer[0].isspace():
        return None
    if prompt[-1] in ">])" or not prompt[-1].isascii() or not answer[0].isascii():
        return None  # the end of a marker, or a script without spaces
    return (
        f"there is no white space between prompt and answer, which are learned as '...{prompt[-12:]}{answer[:12]}...'"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


CHECKS: dict[str, Callable[[Row], None]] = {
    "prompt+completions+ranks": _check_ranking,
    "prompt+chosen+rejected": _check_pair,
    "chosen+rejected": _check_implicit_pair,
    "prompt+completion+label": _check_feedback,
    "prompt+completion": _check_demonstration,
    "messages": _check_messages,
    "text": _check_text,
    "prompt": _check_prompt,
}
"""Raises `BadRow` for a row of the type; the type's columns are there, if only as null."""
