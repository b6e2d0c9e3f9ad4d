"""Check rows before anything is encoded: their shape, their type, their fields."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning import signals
from rlhf_lightning.checkpoint.provenance import read_provenance
from rlhf_lightning.data.readers.files import LocatedRow, iter_rows
from rlhf_lightning.data.readers.problems import BadRow, Problems
from rlhf_lightning.data.rows.fields import CHECKS, clipped, joint
from rlhf_lightning.data.rows.shape import AS_IT_IS, Shape
from rlhf_lightning.data.rows.shared_prompt import split_shared_prompt
from rlhf_lightning.data.rows.types import ROW_TYPES, STAGE_NAMES, TAKEN, StageKind, advice, row_type
from rlhf_lightning.rules.rows import TEMPLATE

if TYPE_CHECKING:
    from rlhf_lightning.types import Row

log = logging.getLogger(__name__)


def sound_rows(
    rows: Iterable[LocatedRow], stage_kind: StageKind, problems: Problems, shape: Shape | None = AS_IT_IS
) -> Iterator[tuple[str, LocatedRow]]:
    """Type and row of the rows that are of a type that the stage takes, with our columns and sound fields, one by one.

    Args:
        rows: as `iter_rows` gives them.
        stage_kind: "demonstrations", "comparisons", "prompts" or "feedback".
        problems: collects the rows that are not, and what is odd about the others.
        shape: how the columns of the file are read; None takes our own only, as files of this library have them.
    """
    kinds: dict[tuple[str, ...], str | None] = {}  # of rows that are all text, by their columns
    for row in rows:
        signals.poll()
        given = row.row
        names = tuple(given)
        if names not in kinds:
            kinds[names] = _simple_type(names, stage_kind)
        name = kinds[names]
        if name is not None and shape is not None and shape.is_plain(given):
            made = given
        else:
            try:
                made = given if shape is None else shape(given, stage_kind)
                name = _check(made, stage_kind)
                if name == "chosen+rejected" and stage_kind == "prompts":
                    made = {**made, "prompt": split_shared_prompt(made["chosen"], made["rejected"])[0]}
            except BadRow as bad:
                problems.add(row.where, str(bad))
                continue
        if shape is not None and (odd := joint(made, name)) is not None:  # what a policy wrote is as it is
            problems.note(odd, row.where)
        yield name, row if made is given else row._replace(row=made)


def _simple_type(names: tuple[str, ...], stage_kind: StageKind) -> str | None:
    """The type of rows of texts that are sound if none is blank; None for those that need a closer look."""
    name = row_type(dict.fromkeys(names, ""), stage_kind)
    return name if name in ("prompt+completion", "prompt", "text") and name in TAKEN[stage_kind] else None


def validate_rows(
    rows: Iterable[LocatedRow],
    stage_kind: StageKind,
    problems: Problems | None = None,
    shape: Shape = AS_IT_IS,
) -> list[LocatedRow]:
    """The rows that are of a type that the stage takes, with sound fields.

    Args:
        rows: as `read_rows` or `iter_rows` give them.
        stage_kind: "demonstrations", "comparisons", "prompts" or "feedback".
        problems: collects the rows that are not; None raises.
        shape: how the columns of the file are read.

    Raises:
        DataError: names file, line, field and reason of the first bad rows, and how many there are.
    """
    found = Problems() if problems is None else problems
    with without_garbage_collection():
        sound = [row for _, row in sound_rows(rows, stage_kind, found, shape)]
    if problems is None:
        found.raise_above(0, len(sound))
    return sound


def load_rows(
    paths: Sequence[str | Path],
    stage_kind: StageKind,
    max_bad_rows: int,
    convert: Callable[[Row], Row] | None = None,
    shape: Shape = AS_IT_IS,
) -> tuple[list[LocatedRow], int]:
    """The rows of all files that a stage can use, and how many it cannot, which a warning names.

    Args:
        paths: see `iter_rows`.
        stage_kind: see `validate_rows`.
        max_bad_rows: rows that may be left out because they cannot be read or used.
        convert: makes a row of one of `ROW_TYPES` from a row as it stands in the file; by default it is one.
        shape: how the columns of the files are read; those that this library wrote are read as they are.

    Raises:
        DataError: more bad rows than that, or no good one; names the first, and how many there are.
    """
    problems = Problems()
    with without_garbage_collection():
        rows = [row for path in paths for _, row in rows_of(path, stage_kind, problems, convert, shape)]
    problems.raise_above(max_bad_rows, len(rows))
    if problems.count:
        log.warning("%d rows are left out (max_bad_rows is %d):\n%s", problems.count, max_bad_rows, problems)
    for note in problems.notes():
        log.warning(note)
    return rows, problems.count


def rows_of(
    path: str | Path,
    stage_kind: StageKind,
    problems: Problems,
    convert: Callable[[Row], Row] | None = None,
    shape: Shape = AS_IT_IS,
) -> Iterator[tuple[str, LocatedRow]]:
    """Type and row of the sound rows of one path, one by one; see `load_rows`."""
    given = iter_rows(path, problems)
    own = is_own(path)
    if convert is not None and not own:
        given = _converted(given, convert, problems)
    yield from sound_rows(given, stage_kind, problems, None if own else shape)


def is_own(path: str | Path) -> bool:
    """Whether this library wrote the file, by the record that it keeps beside it."""
    file = Path(path)
    return file.name in ((read_provenance(file.parent) or {}).get("files") or {})


def _converted(rows: Iterable[LocatedRow], convert: Callable[[Row], Row], problems: Problems) -> Iterator[LocatedRow]:
    """The rows by a function of the user; one that it cannot convert is a bad row."""
    for row in rows:
        try:
            yield row._replace(row=dict(convert(row.row)))
        except Exception as error:
            problems.add(row.where, f"cannot be converted: {type(error).__name__}: {error}")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Rows do not refer to themselves, and looking for what does takes as long as reading them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def narrowed(row: Row, stage_kind: StageKind) -> dict[str, Any]:
    """The columns of the row type alone, and those for the chat template."""
    name = str(row_type(row, stage_kind))
    return {column: row[column] for column in (*ROW_TYPES[name], *TEMPLATE) if column in row}


def _check(row: Row, stage_kind: StageKind) -> str:
    """The type of a row that can be used."""
    kind = row_type(row, stage_kind)
    takes = " or ".join(TAKEN[stage_kind])
    if kind is None:
        columns = clipped(", ".join(sorted(row))) or "none"
        hint = advice(row, stage_kind)
        raise BadRow(f"columns {columns} are no known row type; {STAGE_NAMES[stage_kind]} takes {takes}{hint}")
    if kind not in TAKEN[stage_kind]:
        owner = next(STAGE_NAMES[stage] for stage, kinds in TAKEN.items() if kind in kinds)
        hint = advice(row, stage_kind)
        raise BadRow(f"found a {kind} row, which is for {owner}; {STAGE_NAMES[stage_kind]} takes {takes}{hint}")
    CHECKS[kind](row)
    return kind
