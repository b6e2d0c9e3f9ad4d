"""Rows in the form of RewardBench 2: a prompt with lists of right and of wrong answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TIES = "Ties"
"""The subset in which several answers may be right: each prompt is there with one of them, and with all."""
_TIED = re.compile(r"(?:ref|tied):\S+")


def is_bench(row: Mapping[str, Any]) -> bool:
    """Whether a row has the form of RewardBench 2: lists of right and of wrong answers as text, and a subset."""
    return "subset" in row and all(
        isinstance(row.get(name), list) and all(isinstance(answer, str) for answer in row[name])
        for name in ("chosen", "rejected")
    )


def check_bench(row: Mapping[str, Any]) -> None:
    """Look at a row for which `is_bench` holds.

    Raises:
        ValueError: no answer of a kind, a count that is another, or an ``id`` that the subset `TIES` has not.
    """
    for name, count in (("chosen", "num_correct"), ("rejected", "num_incorrect")):
        if not row[name]:
            raise ValueError(f"{name}: no answer is there")
        if row.get(count) not in (None, len(row[name])):
            raise ValueError(f"{count}: says {row[count]}, and {name} has {len(row[name])} answers")
    if row["subset"] == TIES and not _TIED.fullmatch(str(row.get("id"))):
        raise ValueError(f"id: {row.get('id')!r}; in the subset {TIES} an id is ref:N or tied:N")
