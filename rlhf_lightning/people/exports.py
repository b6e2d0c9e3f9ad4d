"""Judgements as they stand in a file that ``rlhf-lightning label export`` wrote, without a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_lightning.data.readers.files import read_rows
from rlhf_lightning.errors import DataError
from rlhf_lightning.people.entries import Entry, live
from rlhf_lightning.people.judgements import Item, Judgement

_NEEDED = ("key", "kind", "item", "annotator", "ranks", "order", "seconds", "number", "prompt", "completions")


def is_export(row: Any) -> bool:
    """Whether a row is a line of an export, and not one of rankings."""
    return {"key", "kind", "annotator", "order"} <= set(row)


def read_export(path: str | Path) -> tuple[list[Item], list[Judgement]]:
    """The items that were judged, and the judgements that were not taken back, in the order of the file.

    Raises:
        DataError: a line is no line of an export; names file, line and key.
    """
    items: dict[int, Item] = {}
    lines: list[Entry] = []
    for located in read_rows(path):
        row = located.row
        if missing := [name for name in _NEEDED if name not in row]:
            raise DataError(f"{located.where}: {missing[0]}: is missing; `rlhf-lightning label export` writes it")
        completions = tuple(row["completions"])
        ranks = None if row["ranks"] is None else tuple(row["ranks"])
        if ranks is not None and len(ranks) != len(completions):
            raise DataError(f"{located.where}: ranks: are {len(ranks)} for {len(completions)} completions")
        kept = {"prompt": row["prompt"], "completions": list(completions)}
        items[row["item"]] = Item(row["item"], row["prompt"], completions, kept)
        lines.append(
            Entry(row["key"], row["kind"], row["item"], row["annotator"], ranks, tuple(row["order"]), row["seconds"],
                  takes_back=row.get("takes_back"), showing=row.get("showing", 0), number=row["number"])
        )  # fmt: skip
    return sorted(items.values(), key=lambda item: item.number), [entry.judgement() for entry in live(lines)]
