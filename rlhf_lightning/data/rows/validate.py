"""Check rows before anything is encoded: their type, their fields, and how much of the data repeats."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf_lightning import signals
from rlhf_lightning.data.readers.files import LocatedRow, iter_rows
from rlhf_lightning.data.readers.problems import BadRow, Problems
from rlhf_lightning.data.rows.fields import CHECKS, clipped
from rlhf_lightning.data.rows.shared_prompt import split_shared_prompt

if TYPE_CHECKING:
    from rlhf_lightning.types import Row

log = logging.getLogger(__name__)
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
    taken = [name for name in ROW_TYPES if name in TAKEN[stage_kind]]
    for names, types in ((present, taken), (columns, taken), (present, ROW_TYPES)):
        found = next((name for name in types if set(names).issuperset(ROW_TYPES[name])), None)
        if found:
            return found
    return None


def validate_rows(
    rows: Iterable[LocatedRow], stage_kind: StageKind, problems: Problems | None = None
) -> list[LocatedRow]:
    """The rows that are of a type that the stage takes, with sound fields.

    Args:
        rows: as `read_rows` or `iter_rows` give them.
        stage_kind: "demonstrations", "comparisons", "prompts" or "feedback".
        problems: collects the rows that are not; None raises.

    Raises:
        DataError: names file, line, field and reason of the first bad rows, and how many there are.
    """
    found = Problems() if problems is None else problems
    sound = []
    with _no_garbage_collection():  # nothing here refers to itself, and looking for it would double the time
        for row in rows:
            signals.poll()
            try:
                _check(row.row, stage_kind)
            except BadRow as bad:
                found.add(row.where, str(bad))
            else:
                sound.append(row)
    if problems is None:
        found.raise_above(0, len(sound))
    return sound


def load_rows(
    paths: Sequence[str | Path], stage_kind: StageKind, max_bad_rows: int, convert: Callable[[Row], Row] | None = None
) -> tuple[list[LocatedRow], int]:
    """The rows of all files that a stage can use, and how many it cannot, which a warning names.

    Args:
        paths: see `iter_rows`.
        stage_kind: see `validate_rows`.
        max_bad_rows: rows that may be left out because they cannot be read or used.
        convert: makes a row of one of `ROW_TYPES` from a row as it stands in the file; by default it is one.

    Raises:
        DataError: more bad rows than that, or no good one; names the first, and how many there are.
    """
    problems = Problems()
    given = (row for path in paths for row in iter_rows(path, problems))
    rows = validate_rows(given if convert is None else _converted(given, convert, problems), stage_kind, problems)
    problems.raise_above(max_bad_rows, len(rows))
    if problems.count:
        log.warning("%d rows are left out (max_bad_rows is %d):\n%s", problems.count, max_bad_rows, problems)
    return rows, problems.count


def _converted(rows: Iterable[LocatedRow], convert: Callable[[Row], Row], problems: Problems) -> Iterator[LocatedRow]:
    """The rows by a function of the user; one that it cannot convert is a bad row."""
    for row in rows:
        try:
            yield row._replace(row=dict(convert(row.row)))
        except Exception as error:
            problems.add(row.where, f"cannot be converted: {type(error).__name__}: {error}")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def narrowed(row: Row, stage_kind: StageKind) -> dict[str, Any]:
    """The columns of the row type alone."""
    return {column: row[column] for column in ROW_TYPES[str(row_type(row, stage_kind))]}


def identity(row: Row, stage_kind: StageKind) -> str:
    """Equal for rows that train the same thing: the columns of the row type, without the unknown ones."""
    return canonical(narrowed(row, stage_kind))


def prompt_identity(row: Row, stage_kind: StageKind) -> str:
    """Equal for rows with the same prompt, also one that stands in chosen and rejected; the whole row without any."""
    if row.get("prompt") is not None:
        return canonical(row["prompt"])
    if row_type(row, stage_kind) == "chosen+rejected":
        return canonical(split_shared_prompt(row["chosen"], row["rejected"])[0])
    return identity(row, stage_kind)


def count_repeated(train: Sequence[Row], validation: Sequence[Row], stage_kind: StageKind) -> tuple[int, int]:
    """How many training rows repeat an earlier one, and how many validation rows leak.

    A validation row leaks whose prompt is in training, and a demonstration that is there itself: one prompt with many
    answers is how small sets of them are written.
    """
    same = identity if stage_kind == "demonstrations" else prompt_identity
    seen = {same(row, stage_kind) for row in train} if validation else set()
    distinct = {identity(row, stage_kind) for row in train}
    return len(train) - len(distinct), sum(same(row, stage_kind) in seen for row in validation)


def canonical(value: Any) -> str:
    """Equal text for equal values, whatever the order of keys."""
    return json.dumps(value, sort_keys=True, default=str)


def _check(row: Row, stage_kind: StageKind) -> None:
    kind = row_type(row, stage_kind)
    takes = " or ".join(TAKEN[stage_kind])
    if kind is None:
        columns = clipped(", ".join(sorted(row))) or "none"
        raise BadRow(f"columns {columns} are no known row type; {_STAGE[stage_kind]} takes {takes}")
    if kind not in TAKEN[stage_kind]:
        owner = next(_STAGE[stage] for stage, kinds in TAKEN.items() if kind in kinds)
        raise BadRow(f"found a {kind} row, which is for {owner}; {_STAGE[stage_kind]} takes {takes}")
    CHECKS[kind](row)
