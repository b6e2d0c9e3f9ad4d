"""The types of rows, which stages take which, and what to write where a row is of none of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from rlhf_lightning.data.rows.keys import EXPORTS, SIMILAR

if TYPE_CHECKING:
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
TAKEN: dict[StageKind, tuple[str, ...]] = {  # most demanding first
    "demonstrations": ("prompt+completion", "messages", "text"),
    "comparisons": ("prompt+completions+ranks", "prompt+chosen+rejected", "chosen+rejected"),
    "prompts": ("prompt", "chosen+rejected"),
    "feedback": (
        "prompt+completion+label",
        "prompt+completions+ranks",
        "prompt+chosen+rejected",
        "chosen+rejected",
    ),
}
_OF_ANSWERS = {column for columns in ROW_TYPES.values() for column in columns} - {"prompt"} | {"scores"}
UNREAD: dict[str, set[str]] = {  # columns of answers that a stage does not read, so that its files need not have them
    "demonstrations": _OF_ANSWERS - {"completion", "messages", "text"},
    "comparisons": _OF_ANSWERS & {"completion", "messages", "text", "label"},
    "prompts": _OF_ANSWERS,
    "feedback": _OF_ANSWERS & {"messages", "text"},
}
STAGE_NAMES = {
    "demonstrations": "supervised fine-tuning (demonstrations)",
    "comparisons": "the reward model or DPO (comparisons)",
    "prompts": "sampling and PPO (prompts)",
    "feedback": "KTO (feedback)",
}


def row_type(row: Row, stage_kind: StageKind) -> str | None:
    """The row type, judged by the columns that are not null; types that the stage takes come first."""
    columns = tuple(row)
    if None not in row.values():
        return _type_of(columns, columns, stage_kind)
    return _type_of(tuple(name for name, value in row.items() if value is not None), columns, stage_kind)


@lru_cache(maxsize=1024)
def _type_of(present: tuple[str, ...], columns: tuple[str, ...], stage_kind: StageKind) -> str | None:
    taken = TAKEN[stage_kind]
    for names, types in ((present, taken), (columns, taken), (present, tuple(ROW_TYPES))):
        found = next((name for name in types if set(names).issuperset(ROW_TYPES[name])), None)
        if found:
            return found
    return None


def advice(row: Mapping[str, Any], stage_kind: StageKind) -> str:
    """What to set so that a row of no known type is one; empty if it has too few columns to be one.

    >>> advice({"question": "q", "answer": "a"}, "demonstrations")
    '; if they are that, set data.columns={prompt: question, completion: answer}'
    >>> advice({"ticket": "t"}, "prompts")
    '; say which column is which: data.columns={prompt: COLUMN}'
    """
    for names, what in EXPORTS:
        if set(names) <= set(row):
            return f"; it looks like {what}"
    inner = [name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)]
    if len(inner) == 1 and len(row) <= 3:
        return f"; if its {inner[0]} are the rows, write that list as a file"
    for name in sorted(TAKEN[stage_kind], key=lambda name: -len(ROW_TYPES[name])):
        found = {ours: theirs for ours in ROW_TYPES[name] if (theirs := _similar(ours, row))}
        if len(found) == len(ROW_TYPES[name]) and (
            named := {ours: theirs for ours, theirs in found.items() if ours != theirs}
        ):
            named |= {"system": "system_prompt"} if row.get("system_prompt") else {}
            return f"; if they are that, set data.columns={_written(named)}"
    return _to_be_named(row, stage_kind)


def _to_be_named(row: Mapping[str, Any], stage_kind: StageKind) -> str:
    """How to say what the columns of a row are that is of no type; empty for too few columns, or a type of others."""
    needed = ROW_TYPES[next(name for name in TAKEN[stage_kind] if "ranks" not in name)]
    if row_type(row, stage_kind) or sum(value is not None for value in row.values()) < len(needed):
        return ""
    return f"; say which column is which: data.columns={_written(dict.fromkeys(needed, 'COLUMN'))}"


def _similar(ours: str, row: Mapping[str, Any]) -> str | None:
    """The column of a row that is meant by one of ours: itself, by another case, or by another common name."""
    if row.get(ours) is not None:
        return ours
    lower = {name.lower().replace(" ", "_"): name for name in row if row[name] is not None}
    return next((lower[name] for name in (ours, *SIMILAR.get(ours, ())) if name in lower), None)


def _written(names: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{ours}: {theirs}" for ours, theirs in names.items()) + "}"
