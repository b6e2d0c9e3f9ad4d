"""Encode a text once as a whole, and find which of its tokens are to be learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.errors import DataError
from rlhf_lightning.models.templates import name_of
from rlhf_lightning.models.tokens import TokenizerFault, encode, encode_placed

_ANCHORS = (":", ".", "a", "\n", "0")  # what the rest of a text may be encoded behind
_AT_ONCE = 512  # texts whose places are in memory
T = TypeVar("T")
Placed = tuple[list[int], list[tuple[int, int]] | None]


@dataclass(frozen=True)
class Written:
    """The whole text of an example, and which parts of it are to be learned, in order."""

    text: str
    places: list[tuple[int, int]]  # first character, one behind the last
    plain: bool = False  # text that no template wrote, so that the tokenizer's own beginning is added
    marked: bool = False  # the places are the template's own markers, which may leave out the end of the turn


def encode_cut(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Written], owners: Sequence[LocatedRow]
) -> list[tuple[list[int], list[bool]]]:
    """Ids of each example, and which of them are to be learned.

    The ids are those of the whole text. Only where a token would span the end of the prompt (all before the first
    place) the prompt is encoded as sampling meets it, and the rest as it goes on there, so that no token spans both.

    Args:
        tokenizer: what to encode with.
        examples: what to encode.
        owners: the row that each example is of, for messages.

    Raises:
        DataError: the tokenizer fails on a text, or the prompt has no token; names file and line.
    """
    found: list[tuple[list[int], list[bool]]] = []
    for start in range(0, len(examples), _AT_ONCE):
        part, rows = examples[start : start + _AT_ONCE], owners[start : start + _AT_ONCE]
        heads = tokenise(tokenizer, [example.text[: example.places[0][0]] for example in part], rows)
        wholes: list[Placed] = _once_each(partial(encode_placed, tokenizer), [example.text for example in part], rows)
        for example, head, whole, row in zip(part, heads, wholes, rows, strict=True):
            if not whole[0] or (example.places[0][0] and not head):
                name = name_of(tokenizer)
                raise DataError(f"{row.where}: the row starts with no token of tokenizer {name}; change or delete it.")
            found.append(_cut(tokenizer, example, head, whole))
    return found


def tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], owners: Sequence[LocatedRow] = ()
) -> list[list[int]]:
    """Ids of each text without added special tokens; equal texts are encoded once.

    Args:
        tokenizer: what to encode with.
        texts: what to encode.
        owners: the row that each text is of.

    Raises:
        DataError: the tokenizer fails on a text; names file and line of its row.
    """
    return [list(ids) for ids in _once_each(partial(encode, tokenizer), texts, owners)]


def _once_each(encoded: Callable[[list[str]], list[T]], texts: Sequence[str], owners: Sequence[LocatedRow]) -> list[T]:
    """What ``encoded`` makes of each text; equal ones are encoded once."""
    unique = list(dict.fromkeys(texts))
    try:
        found = dict(zip(unique, encoded(unique), strict=True))
    except TokenizerFault as fault:
        owner = owners[texts.index(unique[fault.index])].where + ": " if owners else ""
        raise DataError(f"{owner}{fault}") from fault
    return [found[text] for text in texts]


def _cut(
    tokenizer: PreTrainedTokenizerBase, example: Written, head: list[int], whole: Placed
) -> tuple[list[int], list[bool]]:
    first = example.places[0][0]
    ids, spans = whole
    if ids[: len(head)] != head:  # a token spans the end of the prompt
        ids, spans = _rest(tokenizer, example.text[first:])
        ids, spans = (
            head + ids,
            None if spans is None else [(0, 0)] * len(head) + [(s + first, e + first) for s, e in spans],
        )
    if len(example.places) == 1 and example.places[0][1] == len(example.text):
        return list(ids), [False] * len(head) + [True] * (len(ids) - len(head))
    if spans is None:
        return _piecewise(tokenizer, example, head)
    mask = _learned(spans, example.places, len(head))
    ends = {end for _, end in example.places}
    added = tokenizer.added_tokens_decoder  # a marker belongs to a place as a whole, or not at all
    for token, (start, end) in enumerate(spans):
        if mask[token] and ids[token] in added and any(start < place < end for place in ends):
            mask[token] = False
    return list(ids), mask


def _learned(spans: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]], begin: int) -> list[bool]:
    """Which tokens, from ``begin`` on, hold a character of a place."""
    mask, place, before = [False] * len(spans), 0, 0
    for token, (start, end) in enumerate(spans):
        if start == end:  # white space whose place the tokenizer does not tell
            start = min(before, start)
        while place < len(places) and places[place][1] <= start:
            place += 1
        if place == len(places):
            break
        mask[token] = token >= begin and end > places[place][0] and start < end
        before = max(before, end)
    return mask


def _rest(tokenizer: PreTrainedTokenizerBase, text: str) -> Placed:
    """Ids of a text that goes on where another one ended: without what a tokenizer puts in front of every text."""
    alone = encode_placed(tokenizer, [text])[0]
    if not _begins_texts(tokenizer):
        return alone
    for anchor in _ANCHORS:
        (base, _), (ids, spans) = encode_placed(tokenizer, [anchor, anchor + text])
        size, number = len(anchor), len(base)
        apart = spans is None or (
            all(end <= size for _, end in spans[:number]) and all(s >= size for s, _ in spans[number:])
        )
        if ids[:number] == base and apart:
            return ids[number:], None if spans is None else [(s - size, e - size) for s, e in spans[number:]]
    return alone


def _begins_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text gets other ids at its beginning than behind another one: Llama 2's kind puts a space there."""
    single = encode(tokenizer, ["a", *_ANCHORS, *(f"{anchor}a" for anchor in _ANCHORS)])
    first, bases, joined = single[0], single[1 : 1 + len(_ANCHORS)], single[1 + len(_ANCHORS) :]
    return all(base + first != both for base, both in zip(bases, joined, strict=True))


def _piecewise(tokenizer: PreTrainedTokenizerBase, example: Written, head: list[int]) -> tuple[list[int], list[bool]]:
    """The same where the tokenizer knows no places: each part as it goes on behind the one before."""
    ids, mask, cursor = list(head), [False] * len(head), example.places[0][0]
    for start, end in [*example.places, (len(example.text), len(example.text))]:
        for part, learned in ((example.text[cursor:start], False), (example.text[start:end], True)):
            found = _rest(tokenizer, part)[0] if part else []
            ids += found
            mask += [learned] * len(found)
        cursor = end
    return ids, mask
