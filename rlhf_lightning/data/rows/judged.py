"""Answers with what was said of them, as well-known preference sets write it: completions with scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard

from rlhf_lightning.data.readers.problems import BadRow
from rlhf_lightning.data.rows.messages import normal
from rlhf_lightning.data.rows.shared_prompt import ends_with_turn, split_shared_prompt
from rlhf_lightning.data.rows.unflatten import as_value
from rlhf_lightning.errors import DataError

Columns = dict[str, Any]
Scores = Callable[..., tuple[float, float]]


class Two(NamedTuple):
    """Two answers, the columns that say which is better, and scores of the two by the values of these."""

    answers: tuple[str, str]
    said: tuple[str, ...]
    scores: Scores


def _as_they_are(one: float, two: float) -> tuple[float, float]:
    return float(one), float(two)


def _named(name: str) -> tuple[float, float]:
    return WINNERS[name.lower().replace("_", " ")]


WINNERS = {
    **dict.fromkeys(("model a", "left"), (1.0, 0.0)),
    **dict.fromkeys(("model b", "right"), (0.0, 1.0)),
    **dict.fromkeys(("tie", "tie (bothbad)", "both bad", "bothbad"), (0.0, 0.0)),
}
TWO = (  # by the set that has them
    Two(("response_1", "response_2"), ("preference_strength",), lambda x: (-x, x)),  # HelpSteer 2, -3 to 3
    Two(("response1", "response2"), ("overall_preference",), lambda x: (-x, x)),  # HelpSteer 3, -3 to 3
    Two(("response_0", "response_1"), ("better_response_id",), lambda x: (1 - x, x)),  # PKU-SafeRLHF, 0 or 1
    Two(("human_ref_A", "human_ref_B"), ("labels",), lambda x: (x, 1 - x)),  # SHP, 1 for A
    Two(("answer_0", "answer_1"), ("score_0", "score_1"), _as_they_are),  # WebGPT
    Two(("output_1", "output_2"), ("preference",), lambda x: (2 - x, x - 1)),  # AlpacaFarm, 1 or 2
    Two(("response_a", "response_b"), ("winner_model_a", "winner_model_b"), _as_they_are),  # Chatbot Arena
    Two(("conversation_a", "conversation_b"), ("winner",), _named),  # the same, as conversations
    Two(("answer1", "answer2"), ("comparison",), _named),  # Label Studio, as CSV or short JSON
    Two(("response_j", "response_k"), (), lambda: (1.0, 0.0)),  # paired StackExchange
)
_RANGE = {"better_response_id": (0, 1), "labels": (0, 1), "preference": (1, 2)}
_FAR = float("inf")
_TEXTS, _NUMBERS = (
    ("response", "answer", "text"),
    ("overall_score", "score", "pm_score", "rank"),
)  # of answers in a list
_LISTS = ("completions", "answers", "responses")
_OWN_PROMPT = ("custom_system_prompt", "system_prompt", "instruction", "prompt")


def judged(row: Columns, kind: str, text: bool, roles: Mapping[str, str]) -> Columns:
    """The row with ``prompt``, ``completions`` and ``scores`` or ``ranks``, where it holds answers that were judged.

    Args:
        row: its columns.
        kind: what the stage takes; where it takes prompts, only that of a list of answers is looked for.
        text: whether the prompt is text that the answers follow as they are; otherwise it is the user's turn.
        roles: what the roles of the file are here.

    Raises:
        BadRow: which answer is better cannot be told; names the column.
    """
    two = next((two for two in TWO if all(row.get(name) is not None for name in (*two.answers, *two.said))), None)
    if two is not None:
        return _two(row, two, text, roles)
    listed = next((name for name in _LISTS if _is_judged(row.get(name))), None)
    if listed is not None:
        return _asked(row, text) if kind == "prompts" else _listed(row, listed, text)
    if isinstance(row.get("generations"), list) and isinstance(row.get("ratings"), list) and "completions" not in row:
        rest = {key: value for key, value in row.items() if key not in ("generations", "ratings")}
        return _asked(rest, text) | {"completions": row["generations"], "scores": row["ratings"]}
    good, bad = row.get("chosen"), row.get("rejected")
    if _is_texts(good) and _is_texts(bad):  # RewardBench 2
        rest = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
        return _asked(rest, text) | {"completions": [*good, *bad], "ranks": [1] * len(good) + [2] * len(bad)}
    return row


def check_kept(given: Columns, made: Columns) -> None:
    """Refuse a column that the answers of a row would take the place of."""
    for name in ("completions", "ranks", "scores", "prompt"):
        own = given.get(name)
        if own in (None, made.get(name)) or f"{name}_details" in made:
            continue
        if name != "prompt" or "conversation_a" in given:
            raise BadRow(f"{name}: stands beside judged answers; keep one, or give it another name with data.columns")


def _two(row: Columns, two: Two, text: bool, roles: Mapping[str, str]) -> Columns:
    values = [row[name] for name in two.said]
    for name, value in zip(two.said, values, strict=True):
        least, most = _RANGE.get(name, (-_FAR, _FAR))
        if two.scores is _named:
            sound = isinstance(value, str) and value.lower().replace("_", " ") in WINNERS
        else:
            sound = isinstance(value, (int, float)) and least <= value <= most
        if not sound:
            raise BadRow(f"{name}: is {str(value)[:40]!r}, which does not say which of {' and '.join(two.answers)} is"
                         " better; mend it or delete the row")  # fmt: skip
    rest = {
        key: value for key, value in row.items() if key not in two.answers and (key, *two.said) != ("labels", "labels")
    }
    one, other = (row[name] for name in two.answers)
    if two.answers[0] == "conversation_a":
        rest["prompt"], one, other = _shared(two.answers, one, other, roles)
    elif "winner_model_a" in two.said:
        asked = row.get("prompt")
        rest["prompt"], one, other = _shared(two.answers, _talk(asked, one), _talk(asked, other), roles)
    else:
        rest = _asked(rest, text)
    return rest | {"completions": [one, other], "scores": list(two.scores(*values))}


def _shared(names: tuple[str, str], one: Any, other: Any, roles: Mapping[str, str]) -> tuple[Any, Any, Any]:
    talks = [normal(name, talk, roles) for name, talk in zip(names, (one, other), strict=True)]
    if not all(isinstance(talk, list) for talk in talks):
        raise BadRow(f"{names[0]}: must be a list of messages, and {names[1]} as well")
    try:
        return split_shared_prompt(*talks)
    except DataError as error:
        raise BadRow(f"{' and '.join(names)}: do not begin with the same message, so there is no prompt") from error


def _talk(asked: Any, answered: Any) -> list[Columns]:
    """A conversation of the turns of the user and those of one model, each a text, or a list of them as text."""
    sides = []
    for name, value in (("prompt", asked), ("response", answered)):
        found = as_value(name, value) if isinstance(value, str) and value.lstrip().startswith("[") else value
        sides.append(found if isinstance(found, list) else [found])
    if len(sides[0]) != len(sides[1]):
        raise BadRow(f"prompt: holds {len(sides[0])} turns and an answer {len(sides[1])}; give each turn its answer")
    roles = ("user", "assistant")
    pairs = zip(*sides, strict=True)
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text[:1] != "{" for text in value)


def _is_judged(value: Any) -> bool:
    """Whether a list holds objects with a text and a number each."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(answer, Mapping)
        and any(isinstance(answer.get(name), str) for name in _TEXTS)
        and any(name in answer for name in _NUMBERS)
        for answer in value
    )  # fmt: skip


def _listed(row: Columns, name: str, text: bool) -> Columns:
    """A list of answers with a number each; the rest of what is said of them stays in ``..._details``."""
    answers = row[name]
    key, number = (next(k for k in keys if k in answers[0]) for keys in (_TEXTS, _NUMBERS))
    for place, answer in enumerate(answers):
        if own := next((key for key in _OWN_PROMPT if answer.get(key)), None):
            raise BadRow(f"{name}[{place}].{own}: the answers of a row share one prompt; put it there, or leave it out")
        if answer.get(number) is None or not isinstance(answer.get(key), str):
            raise BadRow(f"{name}[{place}]: has no {number}, or no {key}; add it or leave the answer out")
    rest = {column: value for column, value in row.items() if column != name} | {f"{name}_details": answers}
    return _asked(rest, text) | {
        "completions": [answer[key] for answer in answers],
        "ranks" if number == "rank" else "scores": [answer[number] for answer in answers],
    }


def _asked(row: Columns, text: bool) -> Columns:
    """The row with a ``prompt``: of its own, or what its set calls so; as a turn of the user unless it is text."""
    name = next((n for n in ("prompt", "question", "instruction", "context", "history") if row.get(n)), None)
    if name is None:
        return row
    prompt, rest = row[name], {key: value for key, value in row.items() if key != name}
    if isinstance(prompt, Mapping) and isinstance(prompt.get("full_text"), str):  # WebGPT
        rest["question_details"], prompt = prompt, prompt["full_text"]
    if name == "instruction" and isinstance(rest.get("input"), str):
        more = rest.pop("input")
        prompt = f"{prompt}\n{more}" if more else prompt
    if isinstance(prompt, str) and not text and not ends_with_turn(prompt):
        prompt = [{"role": "user", "content": prompt}]
    return rest | {"prompt": prompt}
