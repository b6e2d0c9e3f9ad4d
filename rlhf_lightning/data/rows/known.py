"""Rows as other tools and well-known data sets write them, with the columns of our row types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.data.readers.problems import BadRow
from rlhf_lightning.data.rows.messages import texts
from rlhf_lightning.data.rows.unflatten import as_conversation, as_value

Columns = dict[str, Any]
_PAIR = ("chosen", "rejected")


def _turn(role: str, content: Any) -> Any:
    """A turn; what is no text is left for the check of fields, which names it."""
    return {"role": role, "content": content}


def _answer(name: str, value: Any) -> Any:
    """One answer as messages."""
    value = as_conversation(name, value) if isinstance(value, str) else value
    return [_turn("assistant", value)] if isinstance(value, str) else [value] if isinstance(value, Mapping) else value


def openai_preference(row: Columns) -> Columns:
    """``input`` with messages and tools, ``preferred_output``, ``non_preferred_output``."""
    if row.get("preferred_output") is None or row.get("non_preferred_output") is None:
        return row
    given = row.get("input")
    given = as_value("input", given) if isinstance(given, str) else given
    if not isinstance(given, Mapping) or given.get("messages") is None:
        raise BadRow("input: must hold messages, as in the preference format of OpenAI")
    known = ("messages", "tools", "parallel_tool_calls", "functions")
    if other := next((key for key, value in given.items() if key not in known and value is not None), None):
        raise BadRow(f"input.{other}: is not followed; leave it out")
    if other := next((name for name in ("prompt", *_PAIR) if row.get(name) is not None), None):
        raise BadRow(f"{other}: stands beside preferred_output; give it another name with data.columns")
    rest = {
        key: value for key, value in row.items() if key not in ("input", "preferred_output", "non_preferred_output")
    }
    for key, value in given.items():
        if key != "messages" and value is not None:
            if rest.get(key, value) != value:
                raise BadRow(f"input.{key}: stands beside {key} and differs; keep one")
            rest[key] = value
    return rest | {
        "prompt": given["messages"],
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
    }


def message_pair(row: Columns) -> Columns:
    """``chosen_messages`` and ``rejected_messages``."""
    if row.get("chosen_messages") is None or row.get("rejected_messages") is None:
        return row
    return renamed(row, {"chosen_messages": "chosen", "rejected_messages": "rejected"})


def share_gpt(row: Columns) -> Columns:
    """``conversations``, alone or as what the answers ``chosen`` and ``rejected`` are to."""
    name = next((name for name in ("conversations", "conversation") if row.get(name) is not None), None)
    if name is None:
        return row
    if all(row.get(side) is not None for side in _PAIR):
        return renamed(row, {name: "prompt"}) | {side: _answer(side, row[side]) for side in _PAIR}
    return renamed(row, {name: "messages"})


def alpaca(row: Columns, prompts: bool) -> Columns:
    """``instruction`` and ``input`` as a user turn after ``history``; ``output`` or a pair as answers.

    Args:
        row: its columns.
        prompts: only the prompt is wanted, so that the other columns stay as they are.
    """
    instruction = row.get("instruction")
    pair = all(row.get(side) is not None for side in _PAIR)
    answered = row.get("output") is not None or pair
    if instruction is None or not (answered or prompts) or row.get("prompt") is not None or "messages" in row:
        return row
    given = row.get("input") or ""
    if not isinstance(given, str) or not isinstance(instruction, str):
        name = "input" if isinstance(instruction, str) else "instruction"
        raise BadRow(f"{name}: is a {type(row[name]).__name__}; beside output it must be text")
    content = f"{instruction}\n{given}" if given else instruction
    rest = {key: value for key, value in row.items() if key not in ("instruction", "input", "history")}
    made = {"prompt": [*_history(row.get("history")), _turn("user", content)]}
    if prompts:
        return rest | made
    if pair:
        return rest | made | {side: _answer(side, row[side]) for side in _PAIR}
    _same_text(row, str(row["output"]))
    rest = {key: value for key, value in rest.items() if key not in ("output", "text")}
    return rest | made | {"completion": _answer("output", row["output"])}


def question_pair(row: Columns) -> Columns:
    """``question`` with a pair of answers, as a conversation."""
    if (
        row.get("question") is None
        or row.get("prompt") is not None
        or not all(row.get(side) is not None for side in _PAIR)
    ):
        return row
    rest = {key: value for key, value in row.items() if key != "question"}
    return rest | {"prompt": [_turn("user", row["question"])]} | {side: _answer(side, row[side]) for side in _PAIR}


def scores(row: Columns) -> Columns:
    """Ranks of ``completions`` by their ``scores``, the highest first."""
    found = row.get("scores")
    if found is None or row.get("completions") is None:
        return row
    values = as_value("scores", found) if isinstance(found, str) else found
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise BadRow(f"scores: is {str(found)[:60]!r}; write a list of finite numbers, the highest is best")
    order = sorted(set(values), reverse=True)
    ranks = [order.index(value) + 1 for value in values]
    if row.get("ranks") is not None and not _agree(row["ranks"], ranks):
        raise BadRow("scores: say something else than ranks; keep one of them (the highest score and rank 1 are best)")
    return row | {"ranks": ranks}


def labelled(row: Columns, feedback: bool) -> Columns:
    """A label by its other name; a labelled conversation as its last answer and what is before it.

    Args:
        row: its columns.
        feedback: single answers with a label are wanted.
    """
    if row.get("kto_tag") is not None and row.get("label") is None:
        row = renamed(row, {"kto_tag": "label"})
    turns = row.get("messages")
    if not feedback or row.get("label") is None or not isinstance(turns, list) or row.get("completion") is not None:
        return row
    if len(turns) < 2:
        raise BadRow(f"messages: holds {len(turns)} messages; a labelled answer needs a prompt before it")
    prompt = row.get("prompt")
    if prompt is not None and (not isinstance(prompt, str) or prompt.strip() not in texts(turns[:-1])):
        raise BadRow("prompt: stands beside messages with a label; give it another name with data.columns")
    rest = {key: value for key, value in row.items() if key not in ("messages", "prompt")}
    return rest | {"prompt": turns[:-1], "completion": turns[-1:]}


def _history(value: Any) -> list[Any]:
    """Pairs of a question and its answer as turns."""
    if isinstance(value, str) and value.strip():
        value = as_value("history", value)
    if value in (None, "", []):
        return []
    if not isinstance(value, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value):
        raise BadRow("history: must be a list of pairs, [question, answer]")
    return [_turn(role, text) for pair in value for role, text in zip(("user", "assistant"), pair, strict=True)]


def _same_text(row: Columns, answer: str) -> None:
    """Refuse a ``text`` that is not the same row once more."""
    text = row.get("text")
    if isinstance(text, str) and answer.strip() not in text:
        raise BadRow("text: is another example than the other columns; give one of them another name with data.columns")


def renamed(row: Columns, names: Mapping[str, str]) -> Columns:
    """The row with other names for some columns; refused where such a column is there already and differs."""
    for old, new in names.items():
        if row.get(new) is not None and row[new] != row[old]:
            raise BadRow(f"{old}: stands beside {new}; keep one, or give it another name with data.columns")
    rest = {key: value for key, value in row.items() if key not in names and key not in names.values()}
    return rest | {new: row[old] for old, new in names.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _agree(one: Any, other: list[int]) -> bool:
    if not isinstance(one, list) or len(one) != len(other) or not all(_is_number(value) for value in one):
        return True  # the check of fields names it
    pairs = [(i, j) for i in range(len(other)) for j in range(i)]
    return all(
        (one[i] < one[j]) == (other[i] < other[j]) and (one[i] > one[j]) == (other[i] > other[j]) for i, j in pairs
    )
