"""Rows of answers that are there already, and what of each is to be scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_lightning.data.readers.problems import BadRow
from rlhf_lightning.data.rows.bench import check_bench, is_bench
from rlhf_lightning.data.rows.unflatten import as_value
from rlhf_lightning.errors import DataError

if TYPE_CHECKING:
    from rlhf_lightning.data.readers.files import LocatedRow

ADDED = ("score", "scores", "score_chosen", "score_rejected")
_ANSWERS = ("completion", "chosen", "rejected")


class Exchanges(NamedTuple):
    """A row, and its prompts and answers by the column that gets the score; those of a list are numbered."""

    row: Mapping[str, Any]
    pairs: Mapping[str, tuple[Any, Any]]


def read_exchanges(file: str) -> list[Exchanges]:
    """The rows of a file in any format that training reads; no torch is imported.

    Raises:
        DataError: a row without an answer, or that has a score already; names file and line.
    """
    from rlhf_lightning.data.readers.files import read_rows

    return [Exchanges(row.row, _pairs(row)) for row in read_rows(file)]


def _pairs(row: LocatedRow) -> dict[str, tuple[Any, Any]]:
    """What there is to score in a row.

    Raises:
        DataError: nothing, or it is not sound; names file and line.
    """
    from rlhf_lightning.data.rows.shared_prompt import split_shared_prompt

    if there := [name for name in ADDED if name in row.row]:
        raise DataError(f"{row.where}: {there[0]}: is there already; rename the column or take it out")
    given = dict(row.row)
    try:
        if isinstance(given.get("completions"), str):
            given["completions"] = as_value("completions", given["completions"])
        if is_bench(given):
            check_bench(given)
            given["completions"] = [*given.pop("chosen"), *given.pop("rejected")]
    except (ValueError, BadRow) as error:
        raise DataError(f"{row.where}: {error}") from error
    if "completions" in given and not given["completions"]:
        if all(given.get(name) is None for name in ("messages", *_ANSWERS)):
            raise DataError(f"{row.where}: completions: has no answers; fill it or delete the row")
        del given["completions"]  # of a table whose other rows have several answers
    sound = _sound(row, given)
    if "completions" in sound:
        return {str(place): (sound["prompt"], answer) for place, answer in enumerate(sound["completions"])}
    if "chosen" in sound:
        parts = (sound.get("prompt"), sound["chosen"], sound["rejected"])
        prompt, chosen, rejected = split_shared_prompt(*parts[1:]) if parts[0] is None else parts
        return {"score_chosen": (prompt, chosen), "score_rejected": (prompt, rejected)}
    if "completion" in sound:
        return {"score": (sound["prompt"], sound["completion"])}
    if "messages" not in sound or sound["messages"][-1]["role"] != "assistant":
        raise DataError(
            f"{row.where}: has no answer to score; write prompt and completion, or messages that end with one"
        )
    return {"score": (sound["messages"][:-1], sound["messages"][-1:])}


def _sound(row: LocatedRow, given: dict[str, Any]) -> Mapping[str, Any]:
    """The row as training reads it; answers that say nothing are as they were given.

    Raises:
        DataError: it is not sound; names file and line.
    """
    from rlhf_lightning.data.rows.validate import validate_rows

    asked = given | {name: _filled(given[name]) for name in _ANSWERS if name in given}
    answers = given.get("completions")
    answers = answers if isinstance(answers, list) else []
    filled = [_filled(answer) for answer in answers]
    if len(answers) > 1:
        asked |= {"completions": filled, "ranks": list(range(len(answers)))}
    elif answers:  # one answer is no ranking
        asked = {name: value for name, value in asked.items() if name != "completions"} | {"completion": filled[0]}
    ranked = {"chosen", "rejected", "completions"} & asked.keys()
    (found,) = validate_rows([row._replace(row=asked)], "comparisons" if ranked else "demonstrations")
    sound: dict[str, Any] = {**found.row}
    if answers:
        read = sound["completions"] if len(answers) > 1 else [sound["completion"]]
        sound["completions"] = [a if f is not a else r for a, f, r in zip(answers, filled, read, strict=True)]
    return sound | {name: given[name] for name in _ANSWERS if name in given and asked[name] is not given[name]}


def _filled(answer: Any) -> Any:
    """An answer that says something: training refuses an empty one, and PPO scores it like any other."""
    if isinstance(answer, str):
        return answer if answer.strip() else "-"
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict) and answer[-1].get("content") == "":
        return [*answer[:-1], {**answer[-1], "content": "-"}]
    return answer
