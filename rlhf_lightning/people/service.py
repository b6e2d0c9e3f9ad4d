"""What the page asks for, without the web: sessions, the next item, judgements, undo, figures for who leads."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from rlhf_lightning.errors import DataError
from rlhf_lightning.people.agreement import agreement_of, text_of
from rlhf_lightning.people.entries import Entry, data_of, live
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
        shown = "".join(map(data_of, self._items.values()))
        self.data = hashlib.sha256(shown.encode()).hexdigest()[:16]  # tells a page whether it looks at the same rows
        self._queue = Queue(list(self._items.values()), plan or Plan(), record.seed)
        self._queue.fill(live(record.entries()))
        self._turn = threading.RLock()

    def next(self, annotator: str) -> dict[str, Any]:
        """The item at hand and how far the person is."""
        with self._turn:
            return self._answer(annotator, self._queue.next(annotator))

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
            if (entry := known(self.record, annotator, body)) is None:
                number = body.get("item")
                turn = self._queue.shown(annotator, number) if type(number) is int else None
                if turn is None:
                    raise DataError("item: is not the one that was shown; load the page again")
                made = self.form.entry(body, self._items[turn.item], turn.order, annotator, turn.showing)
                entry, _ = self.record.add(made)
                self._queue.judged(entry)
            return {"judgement": entry.number} | self._answer(annotator, self._queue.next(annotator))

    def undo(self, annotator: str) -> dict[str, Any]:
        """Take back the last judgement of a person, and show it again as they gave it.

        Raises:
            NothingToUndo: there is none.
        """
        with self._turn:
            last = take_back(self.record, annotator)
            self._queue.fill(live(self.record.entries()))
            turn = self._queue.again(annotator, last.item, last.showing)
            return self._answer(annotator, turn, last)

    def lead(self) -> dict[str, Any]:
        """How far all are, how far they agree, and what to talk about; see `agreement.Agreement` for the figures."""
        with self._turn:
            said = [entry.judgement() for entry in live(self.record.entries())]
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


def known(record: Record, annotator: str, body: Mapping[str, Any]) -> Entry | None:
    """The line that an earlier try of the same judgement wrote.

    Raises:
        DataError: the key stands for another judgement.
    """
    key = body.get("key")
    found = record.by_key(key) if is_key(key) else None
    if found is not None and (found.annotator != annotator or found.item != body.get("item")):
        raise DataError("key: stands for another judgement; load the page again")
    return found


def take_back(record: Record, annotator: str) -> Entry:
    """Take back the last judgement of a person that counts, and return it.

    Raises:
        NothingToUndo: there is none.
    """
    theirs = [entry for entry in live(record.entries()) if entry.annotator == annotator]
    if not theirs:
        raise NothingToUndo("nothing is left to take back")
    last = theirs[-1]
    record.add(Entry(uuid.uuid4().hex, "undo", last.item, annotator, None, last.order, 0.0, takes_back=last.number))
    return last


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
