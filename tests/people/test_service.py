"""Judging, taking back and going on, over the wire: each judgement stands in the record once."""

import sqlite3
import threading

import pytest

from rlhf_lightning.people import record as records
from rlhf_lightning.people.queue import Plan
from tests.people.serving import a_server

ROWS = [(f"prompt {n}", [f"answer {n}.{a}" for a in range(3)]) for n in range(8)]
FILE = Plan("file", overlap=1)
FORM = {"rating": (1, 7), "flags": ("wrong", "rude")}


@pytest.fixture
def server(tmp_path):
    with a_server(tmp_path, ROWS, FILE, **FORM) as started:
        yield started


def test_who_comes_is_told_what_is_asked_and_how_far_they_are(server):
    nobody = server.person().session
    assert (nobody["annotator"], nobody["named"], nobody["progress"]) == (None, True, {"done": 0, "of": 0})
    assert nobody["question"] == "Which answer is better?"
    assert (nobody["rating"], nobody["flags"]) == ({"low": 1, "high": 7, "label": "overall quality"}, ["wrong", "rude"])
    ann = server.person("  ann ")
    assert (ann.session["annotator"], ann.session["progress"]) == ("ann", {"done": 0, "of": 8})
    assert ann.ask("GET", "/api/session") == (200, ann.session)


def test_a_judgement_is_acknowledged_with_the_next_item_and_stands_in_the_record(server):
    ann = server.person("ann")
    item = ann.next()
    assert item["answers"] == [f"answer 0.{at}" for at in item["order"]]
    assert (item["id"], item["prompt"], item["given"]) == (1, "prompt 0", None)
    status, answer = ann.send(item, [2, 1, 3], ratings=[4, 7, None], flags=[[], [], ["rude"]], note="so", seconds=2)
    assert (status, answer["judgement"], answer["progress"]) == (200, 1, {"done": 1, "of": 8})
    assert answer["item"]["id"] == 2
    assert ann.next() == answer["item"]
    (said,) = records.judgements(server.record.path)
    top, middle, end = item["order"]
    assert (said.ranks[top], said.ranks[middle], said.ranks[end]) == (2, 1, 3)
    assert (said.ratings[top], said.ratings[middle], said.ratings[end]) == (4, 7, None)
    assert (said.flags[top], said.flags[end]) == ((), ("rude",))
    assert (said.item, said.annotator, said.order, said.note, said.seconds) == (1, "ann", tuple(item["order"]), "so", 2)


def test_the_same_judgement_sent_again_is_written_once(server):
    ann = server.person("ann")
    item = ann.next()
    first = ann.send(item, [1, 2, 3], key="the-same-key")
    assert ann.send(item, [1, 2, 3], key="the-same-key") == first
    ann.send(first[1]["item"], [1, 1, 1])
    status, late = ann.send(item, [1, 2, 3], key="the-same-key")
    assert (status, late["judgement"], late["item"]["id"]) == (200, 1, 3)
    assert len(server.record.entries()) == 2


def test_the_same_key_from_many_threads_at_once_is_written_once(server):
    item, people = server.person("ann").next(), [server.person("ann") for _ in range(8)]
    answers = []

    def send(person):
        answers.append(person.send(item, [1, 2, 3], key="the-same-key"))

    threads = [threading.Thread(target=send, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(status, answer["judgement"]) for status, answer in answers] == [(200, 1)] * 8
    assert len(server.record.entries()) == 1


def test_a_key_that_stands_for_something_else_is_refused(server):
    ann, bob = server.person("ann"), server.person("bob")
    item = ann.next()
    _, answer = ann.send(item, [1, 2, 3], key="the-same-key")
    sent = [(ann, answer["item"], [1, 2, 3]), (bob, bob.next(), [1, 2, 3]), (ann, item, [3, 2, 1])]
    for person, shown, ranks in sent:
        status, said = person.send(shown, ranks, key="the-same-key")
        assert status == 400 and said["error"].startswith("key: stands for another judgement")
    assert len(server.record.entries()) == 1


def test_a_skip_is_kept_and_the_item_does_not_come_again(server):
    ann = server.person("ann")
    status, answer = ann.send(ann.next(), None)
    assert (status, answer["item"]["id"], answer["progress"]["done"]) == (200, 2, 1)
    assert [one.ranks for one in server.judgements()] == [None]


def test_at_the_end_there_is_no_item(server):
    ann = server.person("ann")
    item = ann.next()
    while item is not None:
        _, answer = ann.send(item, [1, 2, 2])
        item = answer["item"]
    assert answer["progress"] == {"done": 8, "of": 8}
    assert ann.ask("GET", "/api/next") == (200, {"item": None, "progress": {"done": 8, "of": 8}})


def test_undo_shows_what_was_said_as_it_was_sent(server):
    ann = server.person("ann")
    item = ann.next()
    said = {"ratings": [4, 7, None], "flags": [[], ["wrong", "rude"], []], "note": "so"}
    ann.send(item, [2, 1, 3], **said)
    status, back = ann.undo()
    assert (status, back["progress"]) == (200, {"done": 0, "of": 8})
    assert back["item"] == item | {"given": said | {"ranks": [2, 1, 3], "strength": None}}
    assert server.judgements() == []
    assert ann.next() == back["item"]  # as after a reload
    status, answer = ann.send(item, [1, 1, 1])
    assert (status, answer["item"]["id"]) == (200, 2)
    assert [one.ranks for one in server.judgements()] == [(1, 1, 1)]
    assert [entry.kind for entry in server.record.entries()] == ["ranking", "undo", "ranking"]


def test_undo_goes_back_step_by_step_and_touches_nobody_else(server):
    ann, bob = server.person("ann"), server.person("bob")
    ann.send(ann.next(), [1, 2, 3])
    ann.send(ann.next(), None)
    bob.send(bob.next(), [3, 2, 1])
    his = bob.next()
    backs = [ann.undo()[1]["item"] for _ in range(2)]
    assert [(item["id"], item["given"]["ranks"]) for item in backs] == [(2, None), (1, [1, 2, 3])]
    status, answer = ann.undo()
    assert (status, answer) == (409, {"error": "nothing is left to take back"})
    assert [one.annotator for one in server.judgements()] == ["bob"]
    assert bob.send(his, [1, 2, 3])[0] == 200
    assert [ann.send(ann.next(), [1, 2, 3])[0] for _ in range(3)] == [200] * 3


def test_undo_sent_again_takes_back_nothing_more(server):
    ann, bob = server.person("ann"), server.person("bob")
    for _ in range(2):
        ann.send(ann.next(), [1, 2, 3], key=f"the-key-{len(server.record.entries())}")
    first = ann.undo("the-undo-key")
    assert ann.undo("the-undo-key") == first
    assert [one.item for one in server.judgements()] == [1]
    for person, key in ((bob, "the-undo-key"), (ann, "the-key-0"), (ann, "short")):
        status, answer = person.undo(key)
        assert status == 400 and answer["error"].startswith("key: ")
    status, answer = ann.send(first[1]["item"], [1, 2, 3], key="the-undo-key")
    assert status == 400 and answer["error"].startswith("key: stands for another")
    assert len(server.record.entries()) == 3


def test_the_lead_is_told_of_what_was_written_since(server):
    ann, bob = server.person("ann"), server.person("bob")
    assert ann.ask("GET", "/api/lead")[1]["judgements"] == 0
    ann.send(ann.next(), [1, 2, 3])
    first = ann.ask("GET", "/api/lead")[1]
    assert (first["judgements"], first) == (1, ann.ask("GET", "/api/lead")[1])
    bob.send(bob.next(), [1, 2, 3])
    assert ann.ask("GET", "/api/lead")[1]["judgements"] == 2


def test_an_item_that_was_judged_is_refused_under_another_key(server):
    ann = server.person("ann")
    item = ann.next()
    ann.send(item, [1, 2, 3])
    status, answer = ann.send(item, [3, 2, 1])
    assert status == 400 and answer["error"].startswith("item: is not the one that was shown")
    assert [one.ranks is not None for one in server.judgements()] == [True]


def test_a_disk_that_fails_is_said_and_the_same_judgement_can_be_sent_again(server, monkeypatch, caplog):
    ann = server.person("ann")
    item = ann.next()

    def full(entry):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(server.record, "add", full)
    status, answer = ann.send(item, [1, 2, 3], key="the-same-key")
    assert status == 503 and answer["error"].startswith("not saved: ") and "disk is full" in answer["error"]
    assert "labels.db: database or disk is full" in caplog.text
    assert ann.next() == item
    monkeypatch.undo()
    status, answer = ann.send(item, [1, 2, 3], key="the-same-key")
    assert (status, answer["judgement"], answer["item"]["id"]) == (200, 1, 2)
    monkeypatch.setattr(server.record, "add", full)
    assert ann.undo()[0] == 503
    monkeypatch.undo()
    assert ann.next() == answer["item"]
    assert len(server.judgements()) == 1


def test_the_largest_note_fits(server):
    ann = server.person("ann")
    assert ann.send(ann.next(), [1, 2, 3], note="ſ" * 10_000)[0] == 200


def test_two_people_never_have_the_same_item_however_fast_they_are(tmp_path):
    rows = [(f"prompt {n}", ["a", "b"]) for n in range(60)]
    with a_server(tmp_path, rows, Plan("random", overlap=0)) as server:
        people = [server.person(f"person {n}") for n in range(6)]
        begin, statuses = threading.Barrier(6), []

        def work(person):
            begin.wait()
            item = person.next()
            while item is not None:
                status, answer = person.send(item, [1, 2])
                statuses.append(status)
                item = answer["item"]

        threads = [threading.Thread(target=work, args=(person,)) for person in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        said = server.judgements()
    assert statuses == [200] * 60
    assert sorted(one.item for one in said) == list(range(1, 61))
    assert len({one.annotator for one in said}) > 1


def test_a_server_that_starts_again_goes_on_where_the_one_before_ended(tmp_path):
    with a_server(tmp_path, ROWS, FILE) as server:
        ann = server.person("ann")
        ann.send(ann.next(), [1, 2, 3])
        item, session, cookie = ann.next(), ann.session, ann.cookie
    with a_server(tmp_path, ROWS, FILE) as server:
        ann = server.person()
        ann.cookie = cookie
        again = ann.ask("GET", "/api/session")[1]
        assert (again["annotator"], again["data"]) == ("ann", session["data"])
        assert again["progress"] == {"done": 1, "of": 8}
        assert again["csrf"] != session["csrf"]
        ann.csrf = again["csrf"]
        assert ann.next() == item
        assert ann.send(item, [1, 2, 3])[1]["judgement"] == 2


def test_who_leads_sees_how_far_all_are_and_what_they_differ_on(server):
    for name, better in (("ann", 0), ("bob", 0), ("cat", 2)):
        person = server.person(name)
        item = person.next()
        person.send(item, [1 if at == better else 2 for at in item["order"]])
    status, found = server.person().ask("GET", "/api/lead")
    assert status == 200
    assert (found["items"], found["ranked"], found["shared"], found["judgements"]) == (8, 1, 1, 3)
    assert {one["annotator"]: (one["done"], one["of"]) for one in found["people"]} == dict.fromkeys(
        ("ann", "bob", "cat"), (1, 8)
    )
    (discussed,) = found["to_discuss"]
    assert (discussed["item"], discussed["prompt"]) == (1, "prompt 0")
    assert discussed["ranks"] == {"ann": [1, 2, 2], "bob": [1, 2, 2], "cat": [2, 2, 1]}
    assert found["agreement"]["cases"] > 0


def test_nothing_is_shown_of_who_wrote_an_answer(tmp_path):
    with a_server(tmp_path, ROWS, FILE) as server:
        item = server.person("ann").next()
    assert set(item) == {"id", "prompt", "answers", "order", "given"}
