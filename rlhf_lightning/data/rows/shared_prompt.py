"""The prompt that chosen and rejected answers share, where the file does not write it on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from rlhf_lightning.errors import DataError

Answer = TypeVar("Answer", str, list[dict[str, Any]])


def split_shared_prompt(chosen: Answer, rejected: Answer) -> tuple[Answer, Answer, Answer]:
    """Prompt, chosen and rejected: what both begin with, and what is left of each.

    Text is cut before white space, so that no word (and, where tokens begin with the space before a word, no token) is
    torn apart; conversations are cut between messages. Both rests hold something.

    Raises:
        DataError: the two share no beginning.

    >>> split_shared_prompt("Q: why? A: greens", "Q: why? A: great")
    ('Q: why? A:', ' greens', ' great')
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        cut = _text_cut(chosen, rejected)
    else:
        cut = min(shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    if cut < 1:
        raise DataError("chosen and rejected do not begin alike, so there is no prompt; add a prompt column.")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements (characters, messages) both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _text_cut(chosen: str, rejected: str) -> int:
    shared = min(shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    for cut in range(shared, 0, -1):
        boundary = chosen[cut].isspace() and rejected[cut].isspace() and not chosen[cut - 1].isspace()
        if boundary and chosen[cut:].strip() and rejected[cut:].strip():
            return cut
    return 0
