"""Which part of a rendered conversation the assistant wrote, for any chat template."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.rows.shared_prompt import shared_length
from rlhf_lightning.errors import DataError
from rlhf_lightning.models.templates import Message, check_template, name_of, render

Piece = tuple[str, bool]  # text, and whether the model is to learn it
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
log = logging.getLogger(__name__)


def has_generation_markers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template itself marks what the assistant wrote, ``{% generation %}``."""
    check_template(tokenizer)
    return bool(_GENERATION.search(tokenizer.get_chat_template()))


def split_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], first: int = 0) -> list[Piece]:
    """Cut the rendered conversation into pieces that are given and pieces that the assistant writes.

    An assistant turn begins where the generation prompt of the messages before it ends, and reaches as far as the
    conversation up to and including the turn agrees with the whole. A turn that the template rewrites later (thinking
    that is removed from the history) is not learned, and this is logged.

    Args:
        tokenizer: with a chat template.
        messages: the whole conversation.
        first: messages before this index are given, even the assistant's.

    Raises:
        DataError: not one assistant turn could be located.
    """
    whole = render(tokenizer, messages)
    pieces: list[Piece] = []
    cursor = skipped = 0
    for index in range(first, len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        start = _start_of_turn(tokenizer, messages[:index], whole)
        end = _agreement(render(tokenizer, messages[: index + 1]), whole) if index + 1 < len(messages) else len(whole)
        if start is None or not cursor <= start < end:
            skipped += 1
            continue
        pieces += [(whole[cursor:start], False), (whole[start:end], True)]
        cursor = end
    if not pieces:
        raise DataError(
            f"no assistant turn can be located in what the chat template of tokenizer {name_of(tokenizer)} writes; mark"
            " the turns in the template with {% generation %} ... {% endgeneration %}."
        )
    if skipped:
        log.warning("%d assistant turns are rewritten by the chat template and not learned.", skipped)
    return pieces


def _start_of_turn(tokenizer: PreTrainedTokenizerBase, before: Sequence[Message], whole: str) -> int | None:
    if not before:
        raise DataError("the conversation starts with the assistant; put a user or system message first.")
    for generation_prompt in (True, False):
        head = render(tokenizer, before, generation_prompt)
        if whole.startswith(head):
            return len(head)
    return None


def _agreement(part: str, whole: str) -> int:
    return len(part) if whole.startswith(part) else shared_length(part, whole)
