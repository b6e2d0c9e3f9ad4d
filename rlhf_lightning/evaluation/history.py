"""Read the CSV files that the `History` callback writes."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.errors import DataError

HistoryRow = dict[str, float | str]
"""One row: ``step`` (int), ``kind`` (``train`` or ``validation``), ``seconds``, and the tags that were logged."""


def read_history(path: str | Path) -> list[HistoryRow]:
    """Rows of one history file, oldest first; empty cells are left out.

    Raises:
        DataError: a cell that should be a number is not; the message names file, line and column.
    """
    rows: list[HistoryRow] = []
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for record in reader:
            row: HistoryRow = {}
            for tag, text in record.items():
                if text:
                    row[tag] = text if tag == "kind" else _number(text, tag, f"{path}:{reader.line_num}")
            rows.append(row)
    return rows


def read_histories(folder: str | Path) -> dict[str, list[HistoryRow]]:
    """Every history of a run folder, by stage: ``folder/history/<stage>.csv``. Empty when there is none."""
    return {path.stem: read_history(path) for path in sorted((Path(folder) / "history").glob("*.csv"))}


def series(rows: Sequence[HistoryRow], tag: str, kind: str | None = None) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that hold a finite value of ``tag``; ``kind`` keeps one kind of rows."""
    pairs = [
        (float(row["step"]), float(row[tag]))
        for row in rows
        if tag in row and (kind is None or row["kind"] == kind) and math.isfinite(float(row[tag]))
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over up to ``window`` values around each place (fewer at the ends), same length as ``values``.

    >>> moving_mean([0.0, 3.0, 6.0], 3)
    [1.5, 3.0, 4.5]
    """
    half = window // 2
    slices = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [math.fsum(part) / len(part) for part in slices]


def _number(text: str, tag: str, place: str) -> float:
    try:
        return int(text) if tag == "step" else float(text)
    except ValueError:
        raise DataError(f"{place}: {tag}: {text!r} is not a number; delete the file or repair the line") from None
