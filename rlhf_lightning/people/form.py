"""What people are asked about an item, and whether what comes back is an answer to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from rlhf_lightning.errors import DataError
from rlhf_lightning.people.entries import Entry
from rlhf_lightning.people.judgements import Item

LONGEST_NAME, LONGEST_NOTE = 100, 10_000  # characters
LONGEST_TIME = 10**9  # seconds
_KEY = re.compile(r"[0-9A-Za-z_-]{8,64}")
_FIELDS = frozenset(("key", "item", "order", "ranks", "seconds", "ratings", "flags", "note", "strength"))


@dataclass(frozen=True)
class Form:
    """The questions of the page.

    Args:
        question: above all items.
        rating: lowest and highest grade of each answer beside the ranking; None asks for none.
        rating_label: what is graded.
        flags: what may be ticked at each answer.
        note: whether a note may be written for each item.
    """

    question: str = "Which answer is better?"
    rating: tuple[int, int] | None = None
    rating_label: str = "overall quality"
    flags: tuple[str, ...] = ()
    note: bool = True

    def public(self) -> dict[str, Any]:
        """As the page gets it."""
        low_high = self.rating and {"low": self.rating[0], "high": self.rating[1], "label": self.rating_label}
        return {"question": self.question, "rating": low_high, "flags": list(self.flags), "note": self.note}

    def entry(self, body: Mapping[str, Any], item: Item, order: Sequence[int], annotator: str, showing: int) -> Entry:
        """A line of the record from what the page sent.

        Args:
            body: fields as in ``POST /api/judgements``; ranks, ratings and flags in the order shown.
            item: what was judged.
            order: in which it was shown to this person.
            annotator: who judged.
            showing: 1 where it was a repeat.

        Raises:
            DataError: a field is missing, unknown, or not what was asked for; names it.
        """
        if unknown := set(body) - _FIELDS:
            raise DataError(f"{ascii(min(unknown))[1:-1][:LONGEST_NAME]}: there is no such field")
        if missing := {"key", "order", "ranks", "seconds"} - set(body):
            raise DataError(f"{min(missing)}: is missing")
        count = len(item.completions)
        key = _kept("key", body["key"], is_key, "8 to 64 letters or digits")
        if body["order"] != list(order):
            raise DataError("order: is not the order in which the answers were shown; load the page again")
        ranks = body["ranks"]
        if ranks is not None:
            _each("ranks", ranks, count, lambda v: whole(v) and 1 <= v <= count, f"whole numbers from 1 to {count}")
            if list(ranks) != competition(ranks):
                raise DataError("ranks: 1 is the best; where n answers share a rank, the next one is n higher")
        seconds = body["seconds"]
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_TIME:
            raise DataError(f"seconds: is not a number from 0 to {LONGEST_TIME}")
        ratings, flags = self._ratings(body.get("ratings"), count), self._flags(body.get("flags"), count)
        note = _kept("note", body.get("note") or "", is_note, f"a text of at most {LONGEST_NOTE} characters")
        if note and not self.note:
            raise DataError("note: is not asked for")
        strength = body.get("strength")
        if strength is not None and (count != 2 or ranks is None or not whole(strength) or not 1 <= strength <= 3):
            raise DataError("strength: is 1, 2 or 3, for two answers that are ranked")
        back = [order.index(i) for i in range(count)]  # the place of each completion
        return Entry(
            key, "skip" if ranks is None else "ranking", item.number, annotator,
            None if ranks is None else tuple(ranks[at] for at in back), tuple(order), float(seconds),
            tuple(ratings[at] for at in back) if ratings else (), tuple(flags[at] for at in back) if flags else (),
            strength, note, showing=showing,
        )  # fmt: skip

    def _ratings(self, given: Any, count: int) -> list[int | None]:
        if given is None:
            return []
        if self.rating is None:
            raise DataError("ratings: are not asked for")
        low, high = self.rating
        fits = lambda v: v is None or (whole(v) and low <= v <= high)  # noqa: E731
        _each("ratings", given, count, fits, f"null or a whole number from {low} to {high}")
        return [] if all(value is None for value in given) else list(given)

    def _flags(self, given: Any, count: int) -> list[tuple[str, ...]]:
        if given is None:
            return []
        known = set(self.flags)
        fits = lambda v: isinstance(v, list) and all(isinstance(f, str) for f in v) and set(v) <= known  # noqa: E731
        _each("flags", given, count, fits, f"a list of {', '.join(self.flags) or 'nothing'}")
        return [tuple(dict.fromkeys(one)) for one in given] if any(given) else []


def is_key(given: Any) -> TypeGuard[str]:
    """Whether it can be the key of a judgement: 8 to 64 letters or digits, ``-`` and ``_`` as well."""
    return isinstance(given, str) and _KEY.fullmatch(given) is not None


def name_of(given: Any) -> str:
    """The name of a person.

    Raises:
        DataError: it is empty, too long, or holds signs that are not shown.
    """
    name = " ".join(given.split()) if isinstance(given, str) else ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise DataError(f"name: write 1 to {LONGEST_NAME} characters")
    return name


def _kept(field: str, value: Any, fits: Callable[[Any], Any], what: str) -> Any:
    if not fits(value):
        raise DataError(f"{field}: is not {what}")
    return value


def _each(field: str, values: Any, count: int, fits: Callable[[Any], bool], what: str) -> None:
    if not isinstance(values, list) or len(values) != count or not all(map(fits, values)):
        raise DataError(f"{field}: is not {what} for each of the {count} answers")


def is_note(value: Any) -> bool:
    """Whether it is a text that a file of rows can hold, and not too long."""
    if not isinstance(value, str) or len(value) > LONGEST_NOTE:
        return False
    return not any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in value)  # which no data file may hold


def whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def competition(ranks: Sequence[int]) -> list[int]:
    """Ranks of the same order that start at 1 and leave out as many as are shared.

    >>> competition([3, 1, 3])
    [2, 1, 2]
    """
    return [1 + sum(other < rank for other in ranks) for rank in ranks]
