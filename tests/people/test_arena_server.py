"""The arena over the wire: answers come while they are written, end when nobody reads, and are blind."""

import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from rlhf_lightning.people import record as records
from rlhf_lightning.people.server import HEADERS
from tests.gates.gate_sources import ROOT
from tests.people.arena_world import Parrot, Voter, an_arena, endless, serving, vote

NAMES = ("secret_one", "secret_two")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "votes.db"


def slow(name):
    return Parrot(name, "a b c d e f", pause=0.02)


def test_a_whole_visit_and_no_name_or_weight_on_the_wire_before_somebody_leads(path):
    policies = [Parrot(NAMES[0], "so it is"), Parrot(NAMES[1], "it is not")]
    with an_arena(path, policies, ["given one"]) as arena, serving(arena) as running:
        ann = running.person("ann")
        for prompt, kind in (("Why?", "left"), (None, "bad"), ("Who are you?", "skip"), ("So?", "right")):
            status, lines = ann.battle(prompt)
            assert status == 200 and ann.headers["content-type"].startswith("application/x-ndjson")
            assert {name: ann.headers.get(name.lower()) for name in HEADERS} == HEADERS
            assert lines[-1]["item"] == ann.next()
            assert ann.vote(ann.next(), kind)[0] == 200
        assert ann.undo()[1]["item"]["prompt"] == "So?"
        assert ann.ask("GET", "/")[0] == 200
        assert not any(word in heard for heard in ann.heard for word in (*NAMES, "secret", "weights", str(path.parent)))
        status, board = ann.ask("GET", "/api/lead")
        assert (status, board["votes"], board["skipped"], board["annotators"]) == (200, 2, 1, [
            {"annotator": "ann", "votes": 2}])  # fmt: skip
        assert {one["policy"] for one in board["ratings"]} == set(NAMES)
    assert [entry.kind for entry in records.entries(path)] == ["ranking", "ranking", "skip", "ranking", "undo"]


def test_pieces_arrive_before_the_answers_are_whole(path):
    with an_arena(path, [slow("one"), slow("two")]) as arena, serving(arena) as running:
        ann = running.person("ann")
        wire = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=10)
        headers = {"Cookie": ann.cookie, "X-Label-Token": ann.csrf, "Content-Type": "application/json"}
        wire.request("POST", "/api/battles", json.dumps({"prompt": "Why?"}), headers)
        response = wire.getresponse()
        times = []
        while line := response.readline():
            times.append((time.monotonic(), json.loads(line)))
        wire.close()
    assert times[-1][0] - times[0][0] > 0.06
    assert {line.get("place") for _, line in times[1:6]} == {0, 1}  # side by side, and not one after the other


def listening(running, ann):
    """A socket on which a battle has begun to arrive."""
    body = json.dumps({"prompt": "Why?"}).encode()
    host = running.url.removeprefix("http://")
    head = (
        f"POST /api/battles HTTP/1.1\r\nHost: {host}\r\nCookie: {ann.cookie}\r\nX-Label-Token: {ann.csrf}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    wire, heard = socket.create_connection(host.split(":"), timeout=10), b""
    wire.sendall(head.encode() + body)
    while b'"text"' not in heard:
        heard += wire.recv(1 << 16)
    return wire


def test_nothing_is_written_any_further_when_nobody_reads(path):
    policies = [endless("one"), endless("two")]
    with an_arena(path, policies) as arena, serving(arena) as running:
        ann = running.person("ann")
        with listening(running, ann):
            assert [policy.ended for policy in policies] == [0, 0]
        until = time.monotonic() + 5
        while sum(policy.ended for policy in policies) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert [policy.ended for policy in policies] == [1, 1]
        assert ann.next() is None
    assert records.items(path) == []


def test_a_server_that_ends_does_not_wait_for_answers(path):
    policies = [endless("one"), endless("two")]
    with ExitStack() as later, an_arena(path, policies) as arena, serving(arena) as running:
        later.enter_context(listening(running, running.person("ann")))
        began = time.monotonic()
    assert time.monotonic() - began < 3 and [policy.ended for policy in policies] == [1, 1]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [({"prompt": ""}, 400, "prompt: write a text"), ({"prompt": "too long"}, 400, "prompt: is too long"),
     ({}, 400, "prompt: send this field"), ({"prompt": None}, 400, "there are no given ones")],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(path, body, status, says):
    with an_arena(path, [Parrot(name) for name in NAMES]) as arena, serving(arena) as running:
        ann = running.person("ann")
        answered, answer = ann.ask("POST", "/api/battles", body)
        assert (answered, says in answer["error"]) == (status, True)
        assert not any(name in answer["error"] for name in NAMES)
        assert ann.ask("POST", "/api/battles", body, **{"X-Label-Token": "x"})[0] == 403
        assert ann.ask("GET", "/api/battles")[0] == 405
        assert running.person().ask("POST", "/api/battles", body)[0] == 401


def test_beyond_this_machine_only_who_leads_sees_the_standings(path):
    with an_arena(path, [Parrot(name) for name in NAMES]) as arena, serving(arena, ["ann"]) as running:
        ann, lead = running.person(token=running.links["ann"]), running.person(token=running.links[""])
        ann.battle()
        ann.vote(ann.next(), "left")
        assert [person.ask("GET", path)[0] for person in (ann, lead) for path in ("/lead", "/api/lead")] == [
            200, 403, 200, 200]  # fmt: skip
        assert "standings.js" in lead.ask("GET", "/lead")[1]


def test_a_disk_that_is_full_is_said_and_the_vote_can_be_sent_again(path, monkeypatch):
    with an_arena(path, [Parrot(name) for name in NAMES]) as arena, serving(arena) as running:
        ann = running.person("ann")
        ann.battle()
        body = vote(ann.next(), "left")
        with monkeypatch.context() as patch:
            patch.setattr(arena.record, "add", lambda entry: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
            status, answer = ann.ask("POST", "/api/judgements", body)
            assert status == 503 and "not saved" in answer["error"]
        assert ann.ask("POST", "/api/judgements", body)[0] == 200
    assert len(records.entries(path)) == 1


def served(path):
    """The arena in a process of its own, and its host."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.people.arena_world", str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return process, process.stdout.readline().strip().removeprefix("http://")


def work(host, name, waiting, acknowledged):
    """Ask and vote until the server is gone; a vote that is on its way is sent again first, as the page does."""
    ann = None
    try:
        ann = Voter(host, name)
        while True:
            if waiting:
                status, _ = ann.ask("POST", "/api/judgements", waiting[0])
                assert status == 200
                acknowledged.append(waiting.pop())
            item = ann.next() or ann.battle()[1][-1]["item"]
            waiting.append(vote(item, random.Random(item["id"]).choice(["left", "right", "good", "bad", "skip"])))
    except (OSError, http.client.HTTPException, ValueError):  # in the middle of a line as well
        if ann is not None:
            ann.wire.close()


def test_a_vote_that_was_acknowledged_is_there_once_however_the_server_dies(path, kills=3):
    draw, people, acknowledged = random.Random(0), {"ann": [], "ben": []}, []
    for _ in range(kills):
        process, host = served(path)
        threads = [threading.Thread(target=work, args=(host, name, waiting, acknowledged))
                   for name, waiting in people.items()]  # fmt: skip
        for thread in threads:
            thread.start()
        time.sleep(draw.uniform(0.05, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for thread in threads:
            thread.join()
        records.check(path)
        lines = {entry.key: entry for entry in records.entries(path)}
        assert Counter(entry.key for entry in records.entries(path)).most_common(1)[0][1] == 1
        for sent in acknowledged:
            entry = lines[sent["key"]]
            assert (entry.item, entry.ranks and list(entry.ranks)) == (sent["item"], sent["ranks"])
    assert acknowledged and all(len(item.row["policies"]) == 2 for item in records.items(path))
