"""Which part of a rendered conversation the assistant wrote, for any chat template."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.rows.shared_prompt import shared_length
from rlhf_lightning.errors import DataError
from rlhf_lightning.models.templates import Message, check_template, name_of, render, render_marked

Place = tuple[int, int]  # first character, one behind the last
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
log = logging.getLogger(__name__)


def has_generation_markers(tokenizer: PreTrainedTokenizerBase, tools: Any = None) -> bool:
    """Whether the template itself marks what the assistant wrote, ``{% generation %}``."""
    check_template(tokenizer)
    return bool(_GENERATION.search(tokenizer.get_chat_template(tools=tools)))


def learned_places(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], first: int, given: Mapping[str, Any]
) -> tuple[str, list[Place], bool]:
    """The rendered conversation, where in it stands what is to be learned, and whether the template's markers say so.

    Args:
        tokenizer: with a chat template.
        messages: the whole conversation; a turn with ``weight`` 0 is given.
        first: messages before this index are given, even the assistant's.
        given: what else the template reads.

    Raises:
        DataError: not one turn to learn could be located.
    """
    turns = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    counts = [i >= first and m.get("weight") != 0 for i, m in enumerate(messages) if m["role"] == "assistant"]
    if has_generation_markers(tokenizer, given.get("tools")):
        text, places = render_marked(tokenizer, turns, given)
        if len(places) == len(counts) and all(start < end for start, end in places):
            return text, [place for place, learned in zip(places, counts, strict=True) if learned], True
    text, found = _located(tokenizer, turns, first, given)
    places = [place for place, learned in zip(found, counts[-len(found) :], strict=True) if place and learned]
    if not places:
        raise DataError(
            f"no assistant turn can be located in what the chat template of tokenizer {name_of(tokenizer)} writes; mark"
            " the turns in the template with {% generation %} ... {% endgeneration %}."
        )
    return text, places, False


def _located(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], first: int, given: Mapping[str, Any]
) -> tuple[str, list[Place | None]]:
    """The rendered conversation, and the place of each turn of the assistant from ``first`` on.

    A turn begins where the generation prompt of the messages before it ends, and reaches as far as the conversation up
    to and including the turn agrees with the whole. One that the template rewrites later (thinking that is removed from
    the history) has no place, and this is logged.
    """
    whole = render(tokenizer, messages, given=given)
    places: list[Place | None] = []
    cursor = 0
    for index in range(first, len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        start = _start_of_turn(tokenizer, messages[:index], whole, given)
        last = index + 1 == len(messages)
        end = len(whole) if last else _agreement(render(tokenizer, messages[: index + 1], given=given), whole)
        if start is None or not cursor <= start < end:
            places.append(None)
            continue
        places.append((start, end))
        cursor = end
    if any(places) and (skipped := places.count(None)):
        log.warning("%d assistant turns are rewritten by the chat template and not learned.", skipped)
    return whole, places


def _start_of_turn(
    tokenizer: PreTrainedTokenizerBase, before: Sequence[Message], whole: str, given: Mapping[str, Any]
) -> int | None:
    if not before:
        raise DataError("the conversation starts with the assistant; put a user or system message first.")
    for generation_prompt in (True, False):
        head = render(tokenizer, before, generation_prompt, given)
        if whole.startswith(head):
            return len(head)
    return None


def _agreement(part: str, whole: str) -> int:
    return len(part) if whole.startswith(part) else shared_length(part, whole)
