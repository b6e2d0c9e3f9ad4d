"""What people are shown, and what they said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and K answers to be ranked: one row of candidates."""

    number: int  # its place in the file, from 1
    prompt: Any  # a text, or messages
    completions: tuple[Any, ...]  # [K] texts, or lists of messages
    row: Mapping[str, Any] = field(default_factory=dict)  # all columns, these two as well


@dataclass(frozen=True, slots=True)
class Judgement:
    """One person's ranking of one item, or that they skipped it."""

    number: int  # its place in the record, from 1
    item: int  # `Item.number`
    annotator: str
    ranks: tuple[int, ...] | None  # [K] in the order of `Item.completions`, 1 for the best, equal = tie; None: skipped
    order: tuple[int, ...]  # [K] index of the completion at each place of the page, from the top
    seconds: float  # between the answers being shown and the judgement
    at: str  # UTC, ISO 8601
    ratings: tuple[int | None, ...] = ()  # [K] or none, in the order of the completions
    flags: tuple[tuple[str, ...], ...] = ()  # [K] or none
    strength: int | None = None  # of the preference, where K is 2: 1 hardly to 3 much better
    note: str = ""
