"""Encode rows, and leave out those of which tokenizer or chat template can make nothing, within the budget."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from rlhf_lightning import signals
from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.errors import DataError, TemplateFault

T = TypeVar("T")
Encode = Callable[[list[LocatedRow], Counter[str]], list[T]]
log = logging.getLogger(__name__)


def encode_sound(
    encode: Encode[T], rows: list[LocatedRow], max_bad_rows: int, bad: int
) -> tuple[list[T], Counter[str]]:
    """Items of the rows, and counts of what became of them: ``bad_rows`` were left out, which a warning names.

    The rows are encoded together, and only if that fails one by one.

    Args:
        encode: of a data module.
        rows: to encode.
        max_bad_rows: rows that may be left out.
        bad: rows that were left out before and count as well.

    Raises:
        DataError: a row that cannot be encoded is one too many, or the template takes too much, which no row mends.
    """
    counts = Counter({"dropped": 0, "truncated": 0, "bad_rows": 0})
    try:
        return encode(rows, counts), counts
    except TemplateFault:
        raise
    except DataError:
        if bad >= max_bad_rows:
            raise
    sound = _sound(encode, rows, max_bad_rows, bad)
    counts = Counter({"dropped": 0, "truncated": 0, "bad_rows": len(rows) - len(sound)})
    return encode(sound, counts), counts


def _sound(encode: Encode[T], rows: list[LocatedRow], max_bad_rows: int, bad: int) -> list[LocatedRow]:
    problems, sound = Problems(), []
    problems.count = bad
    for row in rows:
        signals.poll()
        try:
            encode([row], Counter())
        except TemplateFault:
            raise
        except DataError as error:
            problems.add(row.where, str(error).removeprefix(f"{row.where}: ").rstrip("."))
            if problems.count > max_bad_rows:
                break
        else:
            sound.append(row)
    problems.raise_above(max_bad_rows, len(sound))
    log.warning("%d rows are left out (max_bad_rows is %d):\n%s", problems.count, max_bad_rows, problems)
    return sound
