"""The arena with policies of a few lines, and people who talk to it: for its tests. Run as a script it is a server."""

import json
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rlhf_lightning.errors import DataError
from rlhf_lightning.people.access import Access
from rlhf_lightning.people.arena import Arena
from rlhf_lightning.people.battle import Prompt
from rlhf_lightning.people.record import Record
from tests.people.serving import Person


class Written(NamedTuple):
    text: str
    finished: bool = True


class Parrot:
    """A policy that says its own words, or those of a function of prompt and seed. Nothing of them tells its name."""

    def __init__(self, name, said="some words", is_chat=False, pause=0.0, error=None):
        self.name, self.weights, self.said = name, f"weights of {name}", said
        self.is_chat, self.pause, self.error = is_chat, pause, error
        self.asked, self.ended = [], 0

    def check(self, prompt):
        if "too long" in str(prompt):
            raise DataError(f"{self.name} has no room")

    def answer(self, prompt, seed, write):
        self.asked.append((prompt, seed))
        text = self.said if isinstance(self.said, str) else self.said(prompt, seed)
        try:
            for piece in text.split(" "):
                write(f"{piece} ")
                time.sleep(self.pause)
            if self.error:
                raise self.error
        finally:
            self.ended += 1
        return Written(text)


def endless(name, pause=0.01):
    """A policy that never ends by itself."""
    return Parrot(name, " ".join(["on"] * 100_000), pause=pause)


def vote(item, kind, **more):
    """The body of a vote."""
    ranks = {"left": [1, 2], "right": [2, 1], "good": [1, 1], "bad": [1, 1], "skip": None}[kind]
    flags = [[kind], [kind]] if kind in ("good", "bad") else None
    body = {"key": uuid.uuid4().hex, "item": item["id"], "order": item["order"], "ranks": ranks, "flags": flags}
    return body | {"seconds": 1.5} | more


def fought(arena, annotator, prompt="Why?"):
    """The lines of a battle in this process, from the beginning to the end."""
    lines = []
    battle = arena.battle(annotator, {"prompt": prompt})
    battle.start(lines.append)
    battle.join()
    assert lines.pop() is None
    return lines


@contextmanager
def an_arena(path, policies, prompts=(), **settings):
    """An arena on a record that is new or there already."""
    with Record(path, None if path.exists() else [], settings.pop("seed", None)) as record:
        arena = Arena(record, policies, [Prompt(text) for text in prompts], **settings)
        try:
            yield arena
        finally:
            arena.close()


class Running:
    """An arena that is served."""

    def __init__(self, arena, url, links):
        self.arena, self.url, self.links, self.people = arena, url, links, []

    def person(self, name=None, token=None):
        self.people.append(Voter(self.url.removeprefix("http://"), name, token))
        return self.people[-1]


@contextmanager
def serving(arena, annotators=()):
    """Serve an arena on a free port, in a thread."""
    from rlhf_lightning.people.arena_server import ArenaApp
    from rlhf_lightning.people.server import listen, web_server

    with listen("127.0.0.1", 0) as heard:
        access = Access(arena.record, links=bool(annotators))
        links = access.new_links(annotators) if annotators else {}
        server = web_server(ArenaApp(arena, access))
        server.config.timeout_graceful_shutdown = 0  # browsers keep connections open
        thread = threading.Thread(target=server.run, kwargs={"sockets": [heard]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        running = Running(arena, f"http://127.0.0.1:{heard.getsockname()[1]}", links)
        try:
            yield running
        finally:
            for person in running.people:
                person.wire.close()
            server.should_exit = True
            thread.join(10)


class Voter(Person):
    """Somebody at the other end of the wire, who asks and votes; `heard` is all that the server said."""

    def __init__(self, *given):
        self.heard = []
        super().__init__(*given)

    def ask(self, method, path, body=None, **headers):
        status, answer = super().ask(method, path, body, **headers)
        self.heard.append(f"{self.headers} {answer}")
        return status, answer

    def battle(self, prompt="Why?"):
        """Status, and the lines or the refusal."""
        status, answer = self.ask("POST", "/api/battles", {"prompt": prompt})
        return status, [json.loads(line) for line in answer.splitlines()] if isinstance(answer, str) else answer

    def vote(self, item, kind, **more):
        return self.ask("POST", "/api/judgements", vote(item, kind, **more))


def main(path):
    """Serve until killed; two policies that answer at once."""
    with an_arena(Path(path), [Parrot("one", "a b c"), Parrot("two", "d e")]) as arena, serving(arena) as running:
        print(running.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
