"""The prompt that chosen and rejected answers share, where the file does not write it on its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

from rlhf_lightning.errors import DataError

Answer = TypeVar("Answer", str, list[dict[str, Any]])
# What opens a turn that is answered: "Assistant:" at the start of a line, "A:" after "Q:", markers of templates.
_TURN = re.compile(
    r"(?im:^[ \t#*]*(?:assistant|ai|bot|chatbot|model|gpt|answer|response|output|summary|tl;?dr)[ \t]*:\**)"
    r"|(?<!\S)Q:(?s:.{1,2000}?)\sA:|<\|(?:im_start\|>)?assistant(?:\|>)?|<\|start_header_id\|>assistant<\|end_header_id\|>"
    r"|<start_of_turn>model|\[/INST\]"
)
_LINE = re.compile(r"(?<=\S)[^\S\n]*\n")  # white space that ends a line


def split_shared_prompt(chosen: Answer, rejected: Answer) -> tuple[Answer, Answer, Answer]:
    r"""Prompt, chosen and rejected: what both begin with, and what is left of each.

    What the answers themselves begin with alike stays with them, where the text shows where they begin: text is cut
    behind the last mark of an answering turn that both share (``Assistant:`` at the start of a line, ``[/INST]``), else
    at the last line break, else before white space, so that no word (and, where tokens begin with the space before a
    word, no token) is torn apart; conversations are cut between messages. Both rests hold something.

    Raises:
        DataError: the two share no beginning.

    >>> split_shared_prompt("Q: why? A: greens", "Q: why? A: great")
    ('Q: why? A:', ' greens', ' great')
    >>> split_shared_prompt("Human: a\n\nAssistant: I see b", "Human: a\n\nAssistant: I see c")[1:]
    (' I see b', ' I see c')
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        cut = _text_cut(chosen, rejected)
    else:
        cut = min(shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    if cut < 1:
        raise DataError("chosen and rejected do not begin alike, so there is no prompt; add a prompt column.")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def ends_with_turn(text: str) -> bool:
    r"""Whether a text ends where an answering turn begins.

    >>> ends_with_turn("Human: why?\n\nAssistant: "), ends_with_turn("Is there an assistant?")
    (True, False)
    """
    end = len(text.rstrip())
    return any(turn.end() == end for turn in _TURN.finditer(text))


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements (characters, messages) both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _text_cut(chosen: str, rejected: str) -> int:
    """Characters of the prompt, 0 if there is none."""
    shared = min(shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    turns = [turn.end() for turn in _TURN.finditer(chosen, 0, shared)]
    lines = [line.start() for line in _LINE.finditer(chosen, 0, shared + 1)]
    for cut in chain(reversed(turns), reversed(lines), range(shared, 0, -1)):
        boundary = chosen[cut].isspace() and rejected[cut].isspace() and not chosen[cut - 1].isspace()
        if (boundary or cut in turns) and chosen[cut:].strip() and rejected[cut:].strip():
            return cut
    return 0
