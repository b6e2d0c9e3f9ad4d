"""Text and conversations to token ids: the whole is encoded once, and cut where the answers begin and end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.cutting import Written, encode_cut, tokenise
from rlhf_lightning.data.readers.files import LocatedRow, located
from rlhf_lightning.data.rows.turns import learned_places
from rlhf_lightning.errors import DataError
from rlhf_lightning.models.templates import LIMITS, name_of, render
from rlhf_lightning.models.tokens import encode, through_eos
from rlhf_lightning.rules.rows import template_arguments
from rlhf_lightning.types import Row

log = logging.getLogger(__name__)
Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example: the prompt is all before the first token to learn, the completion is the rest."""

    prompt_ids: list[int]
    completion_ids: list[int]  # ends with EOS, unless it was cut
    completion_mask: list[bool]  # True at tokens to learn; False at later user turns of a conversation

    @property
    def input_ids(self) -> list[int]:
        """Prompt and completion."""
        return self.prompt_ids + self.completion_ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    def shortened(self, max_length: int, bos: int | None) -> Encoded:
        """At most ``max_length`` tokens: the prompt loses its head (not BOS), and only then the completion its end."""
        room = max(max_length - len(self.completion_ids), 1 if self.prompt_ids else 0)
        prompt = shorten_prompt(self.prompt_ids, room, bos)
        rest = max_length - len(prompt)
        return replace(
            self,
            prompt_ids=prompt,
            completion_ids=self.completion_ids[:rest],
            completion_mask=self.completion_mask[:rest],
        )


def shorten_prompt(ids: list[int], length: int, bos: int | None) -> list[int]:
    """The last ``length`` tokens; a leading BOS is kept where there is room for it and one token more."""
    if len(ids) <= length:
        return ids
    if bos is not None and ids[0] == bos and length > 1:
        return [bos, *ids[len(ids) - length + 1 :]]
    return ids[len(ids) - length :]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Ids of a prompt: text with the tokenizer's own BOS (if it adds one), or messages through the chat template."""
    return encode_prompts(tokenizer, [LocatedRow({"prompt": prompt}, "prompt", 1)])[0]


def encode_example(tokenizer: PreTrainedTokenizerBase, row: Row) -> Encoded:
    """Ids of a demonstration: prompt+completion, messages or text. See `encode_examples`."""
    return encode_examples(tokenizer, [LocatedRow(row, "row", 1)])[0]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[LocatedRow]) -> list[list[int]]:
    """Ids of ``row["prompt"]`` of each row, in one call of the tokenizer.

    Raises:
        DataError: messages without a chat template, or a prompt without a single token; names file and line.
    """
    texts, plain = [], []
    with LIMITS:
        for row in rows:
            prompt = row.row["prompt"]
            plain.append(isinstance(prompt, str))
            LIMITS.renew()
            with located(row):
                texts.append(prompt if isinstance(prompt, str) else _asked(tokenizer, row.row))
    _tell_unread(tokenizer, rows)
    start = _start_ids(tokenizer)
    encoded = tokenise(tokenizer, texts, rows)
    for row, ids in zip(rows, encoded, strict=True):
        if not ids:
            raise DataError(
                f"{row.where}: prompt: holds no token of tokenizer {name_of(tokenizer)}; change or delete it."
            )
    return [_with_start(ids, start) if text else ids for ids, text in zip(encoded, plain, strict=True)]


def encode_examples(tokenizer: PreTrainedTokenizerBase, rows: Sequence[LocatedRow]) -> list[Encoded]:
    """Ids of prompt+completion, messages or text rows. EOS stands exactly once at the end and is learned.

    Raises:
        DataError: no EOS token, no chat template for messages, a completion without a token; names file and line.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(f"tokenizer {name_of(tokenizer)} has no EOS token; set `tokenizer.eos_token`.")
    written = []
    with LIMITS:
        for row in rows:
            LIMITS.renew()
            with located(row):
                written.append(_written(tokenizer, row.row))
    _tell_unread(tokenizer, rows)
    start = _start_ids(tokenizer)
    examples = []
    for row, example, (ids, mask) in zip(rows, written, encode_cut(tokenizer, written, rows), strict=True):
        if example.plain and ids[: len(start)] != start:
            learned = not example.places[0][0]
            ids, mask = start + ids, [learned] * len(start) + mask
        if example.marked:
            mask = _with_ends(ids, mask, int(eos))
        with located(row):
            examples.append(_assemble(tokenizer, ids, mask, int(eos)))
    return examples


def _tell_unread(tokenizer: PreTrainedTokenizerBase, rows: Sequence[LocatedRow]) -> None:
    """Say which keys of messages the chat template does not mention, once, with their first row."""
    found: dict[str, tuple[int, str]] = {}
    for row in rows:
        turns = [t for name in ("prompt", "completion", "messages") for t in _turns(row.row.get(name))]
        for key in {key for turn in turns for key in turn if key not in ("role", "content", "weight")}:
            count, where = found.get(key, (0, row.where))
            found[key] = count + 1, where
    text = str(tokenizer.chat_template)
    for key, (count, where) in sorted(found.items()):
        if key not in text:
            log.warning("%s: the chat template does not read `%s` of messages (%d rows)", where, key, count)


def _turns(value: Any) -> Sequence[Mapping[str, Any]]:
    return value if isinstance(value, list) else ()


def _asked(tokenizer: PreTrainedTokenizerBase, row: Row) -> str:
    """A prompt of messages, up to where the answer begins."""
    turns = [{key: value for key, value in turn.items() if key != "weight"} for turn in row["prompt"]]
    return render(tokenizer, turns, generation_prompt=True, given=template_arguments(row))


def _written(tokenizer: PreTrainedTokenizerBase, row: Row) -> Written:
    """The whole text of a row and what is learned of it."""
    completion = row.get("completion")
    if row.get("messages") is not None and completion is None:
        text, places, marked = learned_places(tokenizer, row["messages"], 0, template_arguments(row))
        return Written(text, places, marked=marked)
    if completion is None:
        return Written(row["text"], [(0, len(row["text"]))], plain=True)
    prompt = row["prompt"]
    if isinstance(completion, str):
        return Written(prompt + completion, [(len(prompt), len(prompt) + len(completion))], plain=True)
    given = template_arguments(row)
    text, places, marked = learned_places(tokenizer, [*prompt, *completion], len(prompt), given)
    return Written(text, places, marked=marked)


def _with_ends(ids: list[int], mask: list[bool], eos: int) -> list[bool]:
    """The mask with the EOS that follows a learned part: markers may leave out the end of a turn."""
    return [
        learned or (token == eos and i > 0 and mask[i - 1])
        for i, (token, learned) in enumerate(zip(ids, mask, strict=True))
    ]


def _assemble(tokenizer: PreTrainedTokenizerBase, ids: list[int], mask: list[bool], eos: int) -> Encoded:
    """Prompt and completion; the white space a template puts after EOS is not learned, and nothing follows the last."""
    mask = list(mask)
    end = len(mask)
    while True in mask[:end]:  # each learned part, from the last one on
        last = end - mask[:end][::-1].index(True)
        first = last - (mask[:last][::-1].index(False) if False in mask[:last] else last)
        kept = first + through_eos(tokenizer, ids[first:last], eos)
        mask[kept:last] = [False] * (last - kept)
        end = first
    if True not in mask:
        raise DataError(f"the completion holds no token of tokenizer {name_of(tokenizer)}; change or delete the row.")
    first, last = mask.index(True), len(mask) - mask[::-1].index(True)
    ids, mask = ids[:last], mask[:last]
    if ids[-1] != eos:
        ids, mask = [*ids, eos], [*mask, True]
    return Encoded(ids[:first], ids[first:], mask[first:])


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts in front of a text: BOS, or nothing."""
    bare, full = (encode(tokenizer, ["a"], special)[0] for special in (False, True))
    found = (i for i in range(len(full)) if bare and full[i : i + len(bare)] == bare)
    return list(full[: next(found, 0)])


def _with_start(ids: list[int], start: list[int]) -> list[int]:
    return ids if ids[: len(start)] == start else start + ids
