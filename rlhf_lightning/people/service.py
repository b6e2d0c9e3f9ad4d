"""What the page asks for, without the web: sessions, the next item, judgements, undo, figures for who leads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from rlhf_lightning.errors import DataError
from rlhf_lightning.people.agreement import agreement_of, text_of
from rlhf_lightning.people.entries import Entry, live
from rlhf_lightning.people.form import Form, is_key
from rlhf_lightning.people.judgements import Item
from rlhf_lightning.people.queue import Plan, Queue, Turn
from rlhf_lightning.people.record import Record

DISCUSSED, SHOWN = 20, 300  # items to discuss, and characters of their prompts


class NothingToUndo(DataError):
    """A person has judged nothing that is not taken back."""


class Service:
    """One record, served to several people. Threads may share it.

    Args:
        record: open for writing.
        form: what is asked.
        plan: how items are dealt.
    """

    def __init__(self, record: Record, form: Form | None = None, plan: Plan | None = None) -> None:
        self.record, self.form = record, form or Form()
        self._items = {item.number: item for item in record.items()}
        self.data = record.data()[:16]  # tells a page whether it looks at the same rows
        self._queue = Queue(list(self._items.values()), plan or Plan(), record.seed)
        self._queue.fill(live(record.entries()))
        self._turn, self._looking = threading.RLock(), threading.Lock()
        self._looked: tuple[int, dict[str, Any]] | None = None  # lines of the record, and what they came to

    def next(self, annotator: str) -> dict[str, Any]:
        """The item at hand and how far the person is; ``given`` is what they said of it and have just taken back."""
        with self._turn:
            turn = self._queue.next(annotator)
            back = taken_back(self.record, annotator)
            same = turn is not None and back is not None and (turn.item, turn.showing) == (back.item, back.showing)
            return self._answer(annotator, turn, back if same else None)

    def progress(self, annotator: str) -> dict[str, int]:
        """How far the person is."""
        with self._turn:
            return self._queue.progress(annotator)

    def judge(self, annotator: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Write a judgement, and give the next item. The same key again writes nothing and gives the same number.

        Raises:
            DataError: the item was not shown to this person, or the body is no answer to it; names the field.
            sqlite3.Error: the disk does not take it; nothing is written.
        """
        with self._turn:
            if (entry := known(self.record, self.form, annotator, body)) is None:
                number = body.get("item")
                turn = self._queue.shown(annotator, number) if type(number) is int else None
                if turn is None:
                    raise DataError("item: is not the one that was shown; load the page again")
                made = self.form.entry(body, self._items[turn.item], turn.order, annotator, turn.showing)
                entry, _ = self.record.add(made)
                self._queue.judged(entry)
            return {"judgement": entry.number} | self._answer(annotator, self._queue.next(annotator))

    def undo(self, annotator: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take back the last judgement of a person, and show it again as they gave it.

        The same ``key`` again takes back nothing more, and gives what is at hand.

        Raises:
            NothingToUndo: there is none.
            DataError: the key is none, or stands for a judgement.
        """
        with self._turn:
            if (last := take_back(self.record, annotator, body)) is not None:
                self._queue.fill(live(self.record.entries()))
                self._queue.again(annotator, last.item, last.showing)
            return self.next(annotator)

    def lead(self) -> dict[str, Any]:
        """How far all are, how far they agree, and what to talk about; see `agreement.Agreement` for the figures.

        Counted again only where something was written since, and one look at a time: who ranks does not wait for it.
        """
        with self._looking:
            written = self.record.written()
            if self._looked is None or self._looked[0] != written:
                self._looked = written, self._figures()
            return self._looked[1]

    def _figures(self) -> dict[str, Any]:
        said = [entry.judgement() for entry in live(self.record.entries())]
        with self._turn:
            progress = {one.annotator: self._queue.progress(one.annotator) for one in said}
        found = agreement_of(self._items.values(), said)
        people = [
            progress[person.annotator] | {
                "annotator": person.annotator, "skipped": person.skipped, "seconds": person.seconds,
                "with_others": vars(person.with_others), "with_self": vars(person.with_self),
                "position": vars(person.position), "length": vars(person.length),
            }
            for person in found.people
        ]  # fmt: skip
        discussed = [
            {
                "item": one.item, "disagreement": one.disagreement, "ranks": dict(one.ranks),
                "prompt": _shown(self._items[one.item]),
            }
            for one in found.to_discuss[:DISCUSSED]
        ]  # fmt: skip
        return {
            "items": len(self._items), "ranked": found.items, "shared": found.shared, "judgements": found.judgements,
            "agreement": vars(found.agreement), "alpha": found.alpha, "tau": found.tau, "people": people,
            "to_discuss": discussed,
        }  # fmt: skip

    def _answer(self, annotator: str, turn: Turn | None, given: Entry | None = None) -> dict[str, Any]:
        shown = turn and as_shown(self._items[turn.item], turn, given)
        return {"item": shown, "progress": self._queue.progress(annotator)}


def known(record: Record, form: Form, annotator: str, body: Mapping[str, Any]) -> Entry | None:
    """The line that an earlier try of the same judgement wrote.

    Raises:
        DataError: the key stands for another judgement.
    """
    key = body.get("key")
    found = record.by_key(key) if is_key(key) else None
    if found is None:
        return None
    item = record.item(found.item)
    if item is not None and (found.annotator, found.item) == (annotator, body.get("item")) and found.kind != "undo":
        sent = form.entry(body, item, found.order, annotator, found.showing)
        if sent.same_as(found):
            return found
    raise DataError("key: stands for another judgement; load the page again")


def take_back(record: Record, annotator: str, body: Mapping[str, Any]) -> Entry | None:
    """Take back the last judgement of a person that counts, and return it; None where the same key did so before.

    Raises:
        NothingToUndo: there is none.
        DataError: the key is none, or stands for a judgement.
    """
    if set(body) != {"key"} or not is_key(body["key"]):
        raise DataError("key: send one of 8 to 64 letters or digits, and nothing else")
    if (found := record.by_key(body["key"])) is not None:
        if found.kind != "undo" or found.annotator != annotator:
            raise DataError("key: stands for another judgement; load the page again")
        return None
    theirs = [entry for entry in live(record.entries()) if entry.annotator == annotator]
    if not theirs:
        raise NothingToUndo("nothing is left to take back")
    last = theirs[-1]
    key, order, number = body["key"], last.order, last.number
    record.add(Entry(key, "undo", last.item, annotator, None, order, 0.0, takes_back=number, showing=last.showing))
    return last


def taken_back(record: Record, annotator: str) -> Entry | None:
    """What a person took back and has said nothing since; None where there is nothing of the kind."""
    last = record.last(annotator)
    return None if last is None or last.takes_back is None else record.line(last.takes_back)


def as_shown(item: Item, turn: Turn, given: Entry | None) -> dict[str, Any]:
    """An item as the page gets it: answers in the order shown, and nothing of who wrote them."""
    said = None
    if given is not None:
        said = {
            "ranks": given.ranks and [given.ranks[at] for at in turn.order],
            "ratings": [given.ratings[at] for at in turn.order] if given.ratings else None,
            "flags": [list(given.flags[at]) for at in turn.order] if given.flags else None,
            "note": given.note,
            "strength": given.strength,
        }
    answers = [item.completions[at] for at in turn.order]
    return {"id": item.number, "prompt": item.prompt, "answers": answers, "order": list(turn.order), "given": said}


def _shown(item: Item) -> str:
    text = " ".join(text_of(item.prompt).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
