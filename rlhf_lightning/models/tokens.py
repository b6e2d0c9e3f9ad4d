"""Text to ids and back by a tokenizer that someone else wrote, which can fail in ways that are no `Exception`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import DataError
from rlhf_lightning.models.templates import name_of

T = TypeVar("T")
Rows = Sequence[Sequence[int]] | Tensor  # ids of each text


class TokenizerFault(DataError):
    """A tokenizer failed on one of several texts.

    Args:
        index: the text, 0 is the first.
        reason: what was wrong.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """Ids of each text, without special tokens unless ``special``.

    Raises:
        TokenizerFault: the tokenizer fails on a text, which is found by trying halves.
    """

    def attempt(part: Sequence[str]) -> list[list[int]]:
        ids: Any = tokenizer(
            list(part),
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        if not tokenizer.is_fast and any(None in row for row in ids):
            raise ValueError("it has no id for a piece of it, and no unk_token")
        return list(ids)

    return _searched(tokenizer, attempt, texts, "cannot encode the text")


def same_ids(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether ids of one tokenizer mean the same to a model with the other one."""
    return tokenizer.get_vocab() == other.get_vocab()


def encode_placed(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[list[int], list[tuple[int, int]] | None]]:
    """Ids of each text, and where each stands in it (first character, one behind the last).

    A tokenizer written in Python knows no places: None.

    Raises:
        TokenizerFault: as `encode`.
    """
    if not tokenizer.is_fast:
        return [(ids, None) for ids in encode(tokenizer, texts)]

    def attempt(part: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]] | None]]:
        found = tokenizer(list(part), add_special_tokens=False, verbose=False)
        return [(list(one.ids), list(one.offsets)) for one in found.encodings or ()]

    return _searched(tokenizer, attempt, texts, "cannot encode the text")


def decode(tokenizer: PreTrainedTokenizerBase, rows: Rows, special: bool = False) -> list[str]:
    """The text of each row of ids, without special tokens unless ``special``.

    Raises:
        TokenizerFault: as `encode`.
    """

    def attempt(part: Any) -> list[str]:
        return [str(text) for text in tokenizer.batch_decode(part, skip_special_tokens=not special)]

    return _searched(tokenizer, attempt, rows, "cannot decode ids")


def through_eos(tokenizer: PreTrainedTokenizerBase, ids: list[int], eos: int) -> int:
    """How many of ``ids`` to learn: all, or up to the last EOS where only white space follows it."""
    if eos not in ids or ids[-1] == eos:
        return len(ids)
    end = len(ids) - ids[::-1].index(eos)
    return len(ids) if decode(tokenizer, [ids[end:]], special=True)[0].strip() else end


def _searched(tokenizer: PreTrainedTokenizerBase, attempt: Callable[[Any], list[T]], items: Any, what: str) -> list[T]:
    """``attempt`` of all items; if it fails, an item that fails is looked for and named."""
    if not len(items):
        return []
    found = _failure(lambda: attempt(items))
    if isinstance(found, list):
        return found
    first, end = 0, len(items)
    while end - first > 1:
        middle = (first + end) // 2
        half = _failure(lambda a=first, b=middle: attempt(items[a:b]))  # type: ignore[misc]
        if isinstance(half, list):
            first = middle
        else:
            end, found = middle, half
    reason = " ".join(str(found).split())[:300] or "no reason given"
    raise TokenizerFault(
        first,
        f"tokenizer {name_of(tokenizer)} {what} ({type(found).__name__}: {reason}); look at its tokenizer.json, or "
        "take another tokenizer.",
    )


def _failure(attempt: Callable[[], list[T]]) -> list[T] | BaseException:
    """What ``attempt`` gives, or what it ended with: an `Exception`, or a panic of Rust, which is none."""
    try:
        return attempt()
    except Exception as error:
        return error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return error
