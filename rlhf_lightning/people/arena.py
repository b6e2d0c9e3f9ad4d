"""The arena: two policies answer a prompt side by side, and a person who is not told which is which votes."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rlhf_lightning.errors import DataError
from rlhf_lightning.people.battle import Battle, Policy, Prompt, Written, asked
from rlhf_lightning.people.entries import as_json, live
from rlhf_lightning.people.form import LONGEST_NOTE, Form, is_note
from rlhf_lightning.people.judgements import Item
from rlhf_lightning.people.queue import Turn
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.service import as_shown, known, take_back, taken_back
from rlhf_lightning.people.votes import BAD, GOOD, POLICIES, WEIGHTS, policies_of, standings, weights_by_name

ASKED_BY = "asked_by"  # column of an item: whom it was shown to
SIDES = (0, 1)  # answers are kept in the order in which they are shown, left and right

log = logging.getLogger(__name__)


class Arena:
    """One record, filled by several people. Threads may share it.

    Each two policies meet equally often, and a coin decides the sides. Who wrote an answer stands in the record, and no
    method but `lead` tells it, or `judge` afterwards where ``reveal`` says so.

    Args:
        record: open for writing.
        policies: at least two, with different names and weights.
        prompts: given ones, for people who do not think of any.
        settings: how all policies sample, kept with each answer.
        seconds: after which two answers that are not finished are given up.
        reveal: tell the names once a vote is written.

    Raises:
        DataError: a name stands for other weights in the record, or the record is one of rankings.
    """

    def __init__(
        self,
        record: Record,
        policies: Sequence[Policy],
        prompts: Sequence[Prompt] = (),
        settings: Mapping[str, Any] | None = None,
        seconds: float = 120.0,
        reveal: bool = False,
    ) -> None:
        self.record, self.form = record, Form(flags=(GOOD, BAD), note=False)
        self.seconds, self.reveal = seconds, reveal
        self.data = hashlib.sha256(f"arena {record.path}".encode()).hexdigest()[:16]
        self.given = len(prompts)
        self._policies, self._prompts, self._settings = list(policies), list(prompts), dict(settings or {})
        kept = record.items()
        before = policies_of(kept, record.path)
        weights_by_name(before, {policy.name: policy.weights for policy in policies}, record.path)
        self._pairs = list(combinations(range(len(policies)), 2))
        self._begun = len(kept)
        self._turn = threading.RLock()
        self._used: dict[str, Counter[str]] = defaultdict(Counter)  # by person: how often they had a prompt
        self._shown: dict[str, Item] = {}  # by person: what they are to vote on
        self._running: dict[str, Battle] = {}
        said = live(record.entries())
        self._votes = Counter(entry.annotator for entry in said if entry.ranks is not None)
        for item in kept:
            self._used[item.row[ASKED_BY]][as_json(item.prompt)] += 1
            self._shown[item.row[ASKED_BY]] = item
        voted = {(entry.annotator, entry.item) for entry in said}
        self._shown = {who: item for who, item in self._shown.items() if (who, item.number) not in voted}

    def battle(self, annotator: str, body: Mapping[str, Any]) -> Battle:
        """Two answers to a prompt of the person's own, or to a given one, that are still to be written.

        Args:
            annotator: who asks; what they asked before and did not wait for is given up.
            body: ``prompt``, a text, or null for a given one.

        Raises:
            DataError: it is no prompt, or one that the models cannot take; names the field.
        """
        prompt = self._prompt(annotator, body)
        with self._turn:
            if (before := self._running.pop(annotator, None)) is not None:
                before.stop()
            number, self._begun = self._begun, self._begun + 1
            sides = self._draw(number)
            seeds = [random.Random(f"{self.record.seed}/answer/{number}/{side}").getrandbits(62) for side in SIDES]
            told = [asked(policy, prompt) for policy in sides]
            shown = told[0] if told[0] == told[1] else prompt.text
            for policy, text in zip(sides, told, strict=True):
                _check_fits(policy, text)

            def keep(written: Sequence[Written]) -> dict[str, Any]:
                return self._keep(annotator, shown, sides, written, seeds)

            self._running[annotator] = Battle(sides, told, shown, seeds, self.seconds, keep)
            return self._running[annotator]

    def next(self, annotator: str) -> dict[str, Any]:
        """The two answers that the person is to vote on, and how many votes they gave."""
        with self._turn:
            item, back = self._shown.get(annotator), taken_back(self.record, annotator)
            given = back if item is not None and back is not None and back.item == item.number else None
            return {"item": item and as_shown(item, Turn(item.number, 0, SIDES), given)} | self._progress(annotator)

    def progress(self, annotator: str) -> dict[str, int]:
        """``done``: how many votes the person gave, skips not counted; ``of`` is the same, as there is no end."""
        return {"done": self._votes[annotator], "of": self._votes[annotator]}

    def judge(self, annotator: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Write a vote: a ranking of the two answers, left and right. The same key again writes nothing.

        Raises:
            DataError: the answers were not shown to this person, or the body is no vote; names the field.
            sqlite3.Error: the disk does not take it; nothing is written.
        """
        with self._turn:
            if (entry := known(self.record, self.form, annotator, body)) is None:
                item = self._shown.get(annotator)
                if item is None or body.get("item") != item.number:
                    raise DataError("item: is not the one that was shown; load the page again")
                entry, _ = self.record.add(self.form.entry(body, item, SIDES, annotator, 0))
                del self._shown[annotator]
                self._votes[annotator] += entry.ranks is not None
            item = self.record.item(entry.item)
            names = {"authors": item.row[POLICIES]} if self.reveal and item is not None else {}
            return {"judgement": entry.number} | names | self.next(annotator)

    def undo(self, annotator: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take back the last vote of a person, and show the answers again; the same ``key`` again does nothing more.

        Raises:
            NothingToUndo: there is none.
            DataError: the key is none, or stands for a vote.
        """
        with self._turn:
            if (last := take_back(self.record, annotator, body)) is not None:
                item = self.record.item(last.item)
                assert item is not None
                self._shown[annotator] = item
                self._votes[annotator] -= last.ranks is not None
            return self.next(annotator)

    def lead(self) -> dict[str, Any]:
        """Win rates and ratings, see `Standings.summary`, and how many votes each person gave."""
        said = [entry.judgement() for entry in live(self.record.entries())]
        votes = Counter(one.annotator for one in said if one.ranks is not None)
        people = [{"annotator": name, "votes": count} for name, count in sorted(votes.items())]
        return standings(self.record.items(), said).summary() | {"annotators": people}

    def close(self) -> None:
        """Give up what is being written."""
        with self._turn:
            running = list(self._running.values())
        for battle in running:
            battle.stop()
            battle.join()

    def _progress(self, annotator: str) -> dict[str, Any]:
        return {"progress": self.progress(annotator), "given": self.given}

    def _prompt(self, annotator: str, body: Mapping[str, Any]) -> Prompt:
        if set(body) != {"prompt"}:
            raise DataError("prompt: send this field and no other")
        text = body["prompt"]
        if text is None:
            if not self._prompts:
                raise DataError("prompt: there are no given ones; write your own")
            return self._given(annotator)
        if not is_note(text) or not text.strip():
            raise DataError(f"prompt: write a text of at most {LONGEST_NOTE} characters")
        return Prompt(text.strip(), typed=True)

    def _given(self, annotator: str) -> Prompt:
        """One of those that the person had least often, in an order of their own."""
        with self._turn:
            order = list(range(len(self._prompts)))
            random.Random(f"{self.record.seed}/{annotator}/prompts").shuffle(order)
            used = self._used[annotator]
            prompt = self._prompts[min(order, key=lambda at: used[as_json(self._prompts[at].text)])]
            used[as_json(prompt.text)] += 1
            return prompt

    def _draw(self, number: int) -> list[Policy]:
        """Who answers at the left and who at the right, in the battle with this number."""
        block, at = divmod(number, len(self._pairs))
        pairs = list(self._pairs)
        random.Random(f"{self.record.seed}/pairs/{block}").shuffle(pairs)
        sides = [self._policies[index] for index in pairs[at]]
        random.Random(f"{self.record.seed}/sides/{number}").shuffle(sides)
        return sides

    def _keep(
        self, annotator: str, prompt: Any, sides: Sequence[Policy], written: Sequence[Written], seeds: Sequence[int]
    ) -> dict[str, Any]:
        """Both answers are there: an item of the record, which the person is to vote on."""
        columns = {
            POLICIES: [policy.name for policy in sides], WEIGHTS: [policy.weights for policy in sides],
            ASKED_BY: annotator, "finished": [one.finished for one in written], "seeds": list(seeds),
            "sampling": self._settings,
        }  # fmt: skip
        with self._turn:
            self._shown[annotator] = self.record.add_item(prompt, [one.text for one in written], columns)
            return self.next(annotator)


def _check_fits(policy: Policy, prompt: Any) -> None:
    try:
        policy.check(prompt)
    except DataError as error:
        log.warning("%s: %s", policy.name, error)
        raise DataError("prompt: is too long for the models, or holds nothing that they know; change it") from None
