"""People who rank over HTTP as the labelling page does, for the benchmarks of the server."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parents[1] / "train.py"
AWAY = (OSError, http.client.HTTPException)  # how a server that is gone looks


class Server:
    """``rlhf-lightning label`` in a process of its own."""

    def __init__(self, candidates: Path, record: Path, *more: str) -> None:
        words = [sys.executable, str(TRAIN), "label", str(candidates), "--record", str(record), "--no-browser"]
        self.process = subprocess.Popen(
            [*words, "--port", "0", *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONPATH": str(TRAIN.parent)},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("http://"):
            raise RuntimeError(f"the server did not start: {line}{self.process.stdout.read()}")
        self.host = line.split()[0].removeprefix("http://").rstrip("/")

    def end(self, kind: int = signal.SIGTERM) -> int:
        """Send a signal and wait."""
        self.process.send_signal(kind)
        self.process.communicate()
        return self.process.returncode


class Annotator:
    """Ranks what the server shows, and sends the same judgement again until it is acknowledged."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.draw = name, random.Random(f"{seed}/{name}")
        self.acknowledged: dict[str, tuple[int, list[int]]] = {}  # by key: the item and the ranks as sent
        self.waiting: dict[str, Any] | None = None  # sent, and not acknowledged
        self.seconds: list[float] = []  # of each request that was answered
        self._shown: dict[str, Any] | None = None

    def connect(self, host: str) -> None:
        """Begin a session, as after a reload."""
        self.wire = http.client.HTTPConnection(host, timeout=10)
        self.headers = {"Content-Type": "application/json"}
        self.headers["X-Label-Token"] = self._ask("GET", "/api/session")["csrf"]
        self.headers["X-Label-Token"] = self._ask("POST", "/api/session", {"name": self.name})["csrf"]
        if self.waiting is None:
            self._shown = self._ask("GET", "/api/next")["item"]

    def judge(self) -> bool:
        """Send one judgement; False where nothing is left."""
        if self.waiting is None:
            if (item := self._shown) is None:
                return False
            ranks = list(range(1, len(item["order"]) + 1))
            self.draw.shuffle(ranks)
            self.waiting = {"key": uuid.uuid4().hex, "item": item["id"], "order": item["order"], "ranks": ranks}
        answer = self._ask("POST", "/api/judgements", self.waiting | {"seconds": 1.0})
        back = [self.waiting["ranks"][self.waiting["order"].index(i)] for i in range(len(self.waiting["order"]))]
        self.acknowledged[self.waiting["key"]] = (self.waiting["item"], back)
        self.waiting, self._shown = None, answer["item"]
        return True

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        began = time.perf_counter()
        self.wire.request(method, path, None if body is None else json.dumps(body), self.headers)
        response = self.wire.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status} {text.decode()}")
        self.seconds.append(time.perf_counter() - began)
        if cookie := response.getheader("set-cookie"):
            self.headers["Cookie"] = cookie.partition(";")[0]
        answer: dict[str, Any] = json.loads(text)
        return answer


def write_candidates(path: Path, count: int, answers: int = 4, words: int = 60) -> Path:
    """A file with so many prompts and answers of some sixty words."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            texts = [" ".join(str(draw.randrange(10**6)) for _ in range(words)) for _ in range(answers)]
            stream.write(json.dumps({"prompt": f"Question {number}?", "completions": texts}) + "\n")
    return path
