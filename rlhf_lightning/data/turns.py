"""Which part of a rendered conversation the assistant wrote, for any chat template."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.implicit import shared_length
from rlhf_lightning.errors import DataError

Message = Mapping[str, Any]
Piece = tuple[str, bool]  # text, and whether the model is to learn it
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
log = logging.getLogger(__name__)


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """How messages call the tokenizer: its path, or its class where it has none."""
    return f"'{tokenizer.name_or_path or type(tokenizer).__name__}'"


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], generation_prompt: bool = False) -> str:
    """The conversation as the template writes it, special tokens included.

    Raises:
        DataError: the tokenizer has no chat template, or the template refuses the conversation.
    """
    check_template(tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # a template is a program: it can fail in any way
        raise DataError(f"the chat template of tokenizer {name_of(tokenizer)} refuses the messages: {error}") from error
    assert isinstance(text, str)
    return text


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `DataError` if the tokenizer cannot render messages."""
    if not tokenizer.chat_template:
        raise DataError(
            f"the row holds messages, but tokenizer {name_of(tokenizer)} has no chat template; take the tokenizer of an"
            " instruct model, set `tokenizer.chat_template`, or write prompt and completion as text."
        )


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
