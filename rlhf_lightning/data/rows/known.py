"""Rows as other tools and well-known data sets write them, with the columns of our row types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.data.readers.problems import BadRow
from rlhf_lightning.data.rows.messages import texts
from rlhf_lightning.data.rows.unflatten import as_value

Columns = dict[str, Any]
_PAIR = ("chosen", "rejected")


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
    """``conversations`` or its kin, alone or as what the answers ``chosen`` and ``rejected`` are to."""
    name = next((name for name in ("conversations", "conversation", "contents") if row.get(name) is not None), None)
    if name is None:
        return row
    if name == "contents" and row.get("systemInstruction") is not None:  # Gemini
        row = renamed(row, {"systemInstruction": "system"})
    answered = all(row.get(side) is not None for side in _PAIR)
    return renamed(row | {name: _turns(row[name])}, {name: "prompt" if answered else "messages"})


def _turns(value: Any) -> Any:
    """Turns that are texts, a user's first (LIMA), or pairs of ``input`` and ``output`` (Capybara), as messages."""
    if not isinstance(value, list) or not value:
        return value
    if all(isinstance(turn, str) and turn.lstrip()[:1] != "{" for turn in value):
        return [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(value)]
    if all(isinstance(turn, Mapping) and set(turn) == {"input", "output"} for turn in value):
        return _history([[turn["input"], turn["output"]] for turn in value])
    return value


def called(row: Columns) -> Columns:
    """``query``, ``tools`` and the calls that answer it, ``answers`` (xLAM), as a conversation."""
    if any(row.get(name) is None for name in ("query", "answers", "tools")):
        return row
    calls = as_value("answers", row["answers"]) if isinstance(row["answers"], str) else row["answers"]
    if not isinstance(calls, list):
        raise BadRow(f"answers: is a {type(calls).__name__}; write a list of calls")
    turns = [{"role": "user", "content": row["query"]}, {"role": "assistant", "content": "", "tool_calls": calls}]
    return renamed(row | {"query": turns}, {"query": "messages"}) if "messages" not in row else row


def alpaca(row: Columns, prompts: bool) -> Columns:
    """``instruction`` and ``input`` (or ``context``) as a user turn after ``history``; an answer, or a pair of them.

    Args:
        row: its columns.
        prompts: only the prompt is wanted, so that the other columns stay as they are.
    """
    instruction = row.get("instruction")
    answers = [name for name in ("output", "completion", "response") if row.get(name) is not None]
    answer = next(iter(answers), None)
    pair = all(row.get(side) is not None for side in _PAIR)
    if instruction is None or not (answer or pair or prompts) or row.get("prompt") is not None or "messages" in row:
        return row
    more = "context" if row.get("input") in (None, "") else "input"
    for name in ("instruction", more):
        if not isinstance(row.get(name) or "", str):
            raise BadRow(f"{name}: is a {type(row[name]).__name__}; beside an answer it must be text")
    content = f"{instruction}\n{row[more]}" if row.get(more) else instruction
    rest = {key: value for key, value in row.items() if key not in ("instruction", "input", more, "history")}
    made = rest | {"prompt": [*_history(row.get("history")), {"role": "user", "content": content}]}
    if prompts or pair or answer is None:
        return made
    if other := next((name for name in answers if row[name] != row[answer]), None):
        raise BadRow(f"{other}: stands beside {answer} and is another answer; keep one")
    if isinstance(row[answer], list) and all(isinstance(text, str) for text in row[answer]):
        raise BadRow(f"{answer}: is a list; write one answer, or several as completions with ranks or scores")
    _same_text(row, str(row[answer]))
    return {key: value for key, value in made.items() if key not in (*answers, "text")} | {"completion": row[answer]}


def question_pair(row: Columns) -> Columns:
    """``question`` or ``input`` with a pair of answers, as a conversation."""
    name = next((name for name in ("question", "input") if isinstance(row.get(name), str) and row[name]), None)
    if name is None or row.get("prompt") is not None or not all(row.get(side) is not None for side in _PAIR):
        return row
    rest = {key: value for key, value in row.items() if key != name}
    return rest | {"prompt": [{"role": "user", "content": row[name]}]}


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
    given = row.get("ranks")
    given = as_value("ranks", given) if isinstance(given, str) else given
    if given is not None and not _agree(given, ranks):
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
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in value for role, text in zip(roles, pair, strict=True)]


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
        return False
    pairs = [(i, j) for i in range(len(other)) for j in range(i)]
    return all(
        (one[i] < one[j]) == (other[i] < other[j]) and (one[i] > one[j]) == (other[i] > other[j]) for i, j in pairs
    )
