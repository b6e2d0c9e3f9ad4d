"""Candidates as items to be ranked: a file of rows, or the folder of a `rank` stage without a judge."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rlhf_lightning.data.readers.files import LocatedRow, read_rows
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.data.rows.shared_prompt import split_shared_prompt
from rlhf_lightning.data.rows.validate import sound_rows
from rlhf_lightning.errors import DataError
from rlhf_lightning.people.judgements import Item
from rlhf_lightning.rules.stages import CANDIDATES

_PLACES = (CANDIDATES, f"rankings/{CANDIDATES}")  # in the folder of the stage, in the folder of its run
_JUDGED, _PAIR = ("ranks", "scores"), ("chosen", "rejected", "margin")  # what was said before; people rank anew

log = logging.getLogger(__name__)


def read_candidates(path: str | Path) -> list[Item]:
    """The items of a file, in its order; an item's number is the place of its row, 1 for the first.

    Rows hold ``prompt`` and ``completions``, or ``prompt``, ``chosen`` and ``rejected`` (the prompt may be left out
    where both begin with it), as `rlhf_lightning.data` reads them. Rows whose answers all say the same leave nothing to
    rank: they are left out, and a warning says how many.

    Args:
        path: a file in any format that training reads, the output of a `rank` stage, or the folder of its run.

    Raises:
        DataError: no such file, no item in it, or rows that cannot be shown; names file, line and field.
    """
    file = candidates_file(path)
    problems, items, alike = Problems(), [], 0
    for number, row in enumerate(read_rows(file), 1):
        if _same(row.row.get("completions")):
            alike += 1
            continue
        items += [_item(number, row, sound) for _, sound in sound_rows([_asked(row)], "comparisons", problems)]
    problems.raise_above(0, len(items) + alike)
    if not items:
        raise DataError(f"{file}: the answers of each of its {alike} rows are the same, so there is nothing to rank")
    if alike:
        log.warning("%s: %d rows are left out, since their answers are the same", file, alike)
    return items


def candidates_file(path: str | Path) -> Path:
    """The file that a path means: itself, or the candidates in a folder.

    Raises:
        DataError: a folder without any.
    """
    place = Path(path)
    if not place.is_dir():
        return place
    for name in _PLACES:
        if (place / name).is_file():
            return place / name
    if (place / "rankings.jsonl").is_file() or (place / "rankings" / "rankings.jsonl").is_file():
        raise DataError(f"{place}: holds rankings, which are judged already; stage=rank judge=none writes candidates")
    raise DataError(f"{place}: has no {CANDIDATES}; stage=rank judge=none writes it, or name a file")


def _asked(row: LocatedRow) -> LocatedRow:
    """A row as comparisons have it: answers that nobody has ranked get some ranks, so that their check applies."""
    columns = {name: value for name, value in row.row.items() if name not in _JUDGED}
    if isinstance(answers := columns.get("completions"), list) and not isinstance(next(iter(answers), None), dict):
        columns["ranks"] = list(range(1, len(answers) + 1))
    return row._replace(row=columns)


def _item(number: int, row: LocatedRow, sound: LocatedRow) -> Item:
    columns: dict[str, Any] = dict(sound.row)
    if "completions" in columns:
        prompt, answers = columns["prompt"], columns["completions"]
        scores = {name: row.row[name] for name in ("scores",) if name in row.row and "completions" in row.row}
    elif columns.get("prompt") is not None:
        prompt, answers, scores = columns["prompt"], [columns["chosen"], columns["rejected"]], {}
    else:
        prompt, *answers = split_shared_prompt(columns["chosen"], columns["rejected"])
        scores = {}
    rest = {name: value for name, value in columns.items() if name not in (*_JUDGED, *_PAIR)}
    return Item(number, prompt, tuple(answers), {**rest, **scores, "prompt": prompt, "completions": answers})


def _same(answers: Any) -> bool:
    """Whether there are answers and no two that differ."""
    return isinstance(answers, list) and bool(answers) and all(answer == answers[0] for answer in answers)
