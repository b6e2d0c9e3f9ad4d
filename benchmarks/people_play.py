"""Simulated people: how they rank, and how they do it on the page."""

from __future__ import annotations

import json
import math
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.cookiejar import CookieJar
from itertools import combinations
from pathlib import Path
from typing import Any

from rlhf_lightning.labelling.ranking import ranks
from rlhf_lightning.people.candidates import read_candidates
from rlhf_lightning.people.entries import Entry
from rlhf_lightning.people.judgements import Item
from rlhf_lightning.people.record import Record
from rlhf_lightning.tasks.miniature.gold import gold

WAIT = 30.0  # seconds for the page to answer for the first time


class Person:
    """Ranks by the hidden judge's score and noise of their own.

    Args:
        name: of the annotator.
        scale: of the Gumbel noise, in units of the score, so that rankings are those of Plackett and Luce.
        draw: of the noise.
    """

    def __init__(self, name: str, scale: float, draw: random.Random) -> None:
        self.name, self.scale, self.draw = name, scale, draw

    def ranks(self, prompt: Any, answers: Sequence[Any]) -> list[int]:
        """Of the answers, 1 for the best."""
        scores = gold([prompt] * len(answers), list(answers))
        return ranks([score - self.scale * math.log(-math.log(self.draw.random() or 1e-300)) for score in scores])


def scales_for(items: Sequence[Item], accuracies: Iterable[float]) -> list[float]:
    """The noise with which a person orders so many of the pairs of the items right.

    Two scores that are d apart are ordered right with probability sigmoid(d / scale).
    """
    gaps = [
        abs(one - other)
        for item in items
        for one, other in combinations(gold([item.prompt] * len(item.completions), list(item.completions)), 2)
        if one != other
    ]
    found = []
    for accuracy in accuracies:
        low, high = 1e-3, 1e3
        for _ in range(60):
            scale = math.sqrt(low * high)
            right = sum(1 / (1 + math.exp(-min(gap / scale, 700.0))) for gap in gaps) / len(gaps)
            low, high = (scale, high) if right > accuracy else (low, scale)
        found.append(scale)
    return found


def rank_by_hand(labels: Path, candidates: Path, people: Sequence[Person], overlap: int) -> None:
    """Write to the record what the people say; items that are not for all go round."""
    with Record(labels, read_candidates(candidates)) as record:
        for item in record.items():
            asked = people if item.number % overlap == 0 else [people[item.number % len(people)]]
            for person in asked:
                said = tuple(person.ranks(item.prompt, item.completions))
                order = tuple(person.draw.sample(range(len(said)), len(said)))
                record.add(Entry(str(uuid.uuid4()), "ranking", item.number, person.name, said, order, 1.0))


def rank_on_the_page(labels: Path, candidates: Path, people: Sequence[Person], overlap: int) -> None:
    """All people at once, each until nothing is left for them."""
    with _server(labels, candidates, overlap) as address, ThreadPoolExecutor(len(people)) as pool:
        for done in [pool.submit(Session(address, person).play) for person in people]:
            done.result()


class Session:
    """One person in front of the page.

    Args:
        address: of the server, ``http://host:port``.
        person: who ranks.
    """

    def __init__(self, address: str, person: Person) -> None:
        self.address, self.person = address, person
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self._token = self._ask("/api/session")["csrf"]
        self._token = self._ask("/api/session", {"name": person.name}).get("csrf", self._token)

    def play(self) -> int:
        """Rank what comes until nothing does; returns how many items that were."""
        item, count = self._ask("/api/next")["item"], 0
        while item is not None:
            said = self.person.ranks(item["prompt"], item["answers"])
            judgement = {"key": str(uuid.uuid4()), "item": item["id"], "order": item["order"], "ranks": said}
            more = {"seconds": 1.0, "ratings": None, "flags": None, "note": "", "strength": None}
            item, count = self._ask("/api/judgements", judgement | more)["item"], count + 1
        return count

    def _ask(self, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "Origin": self.address}
        if body is not None:
            headers["X-Label-Token"] = self._token
        given = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, given, headers)
        try:
            with self._opener.open(request, timeout=WAIT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {error.code}: {error.read().decode(errors='replace')[:300]}") from error


@contextmanager
def _server(labels: Path, candidates: Path, overlap: int) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["label", candidates, "--record", labels, "--port", port, "--overlap", overlap, "--no-browser"]
    command = [sys.executable, "train.py", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield _answers(f"http://127.0.0.1:{port}", process)
        finally:
            process.terminate()


def _answers(address: str, process: subprocess.Popen[str]) -> str:
    """The address, once somebody is there."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/session", timeout=WAIT).close()
            return address
        except OSError:
            time.sleep(0.05)
    told = process.stderr.read() if process.poll() is not None and process.stderr else "it did not answer"
    raise SystemExit(f"rlhf-lightning label: {told}")
