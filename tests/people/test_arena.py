"""Who meets whom, what is kept of it, and what is told to whom: the arena without the web."""

import json
import random
import sqlite3
import threading
import time
import uuid
from collections import Counter
from itertools import pairwise

import pytest

from rlhf_lightning.errors import DataError
from rlhf_lightning.people import record as records
from rlhf_lightning.people.battle import FAILED
from rlhf_lightning.people.exchange import exported, import_into
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.service import NothingToUndo
from tests.people.arena_world import Parrot, an_arena, endless, fought, vote
from tests.people.serving import items_of

NAMES = ("first", "second", "third")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "votes.db"


@pytest.fixture
def arena(path):
    with an_arena(path, [Parrot(name, f"words {number}") for number, name in enumerate(NAMES)]) as made:
        yield made


def test_each_two_policies_meet_equally_often_and_a_coin_decides_the_sides(arena):
    for _ in range(240):
        fought(arena, "ann")
    kept = [tuple(item.row["policies"]) for item in arena.record.items()]
    assert set(Counter(map(frozenset, kept)).values()) == {80}
    left = Counter(one for one, _ in kept)
    # Each policy is in 160 battles; a fair coin puts it at the left 80 +- 6.3 times.
    assert all(abs(left[name] - 80) < 4 * 6.3 for name in NAMES)
    assert all(kept.count((a, b)) > 20 for a in NAMES for b in NAMES if a != b)


def test_nobody_who_knows_the_last_sides_knows_the_next_ones(path):
    with an_arena(path, [Parrot("one"), Parrot("two")]) as arena:
        for _ in range(160):
            fought(arena, "ann")
        left = [item.row["policies"][0] for item in arena.record.items()]
    # Of 159 neighbours a fair coin repeats itself in 79.5 +- 6.3.
    assert abs(sum(one == other for one, other in pairwise(left)) - 79.5) < 4 * 6.3
    assert abs(left.count("one") - 80) < 4 * 6.3


def test_the_answers_are_kept_in_the_order_in_which_they_are_shown_with_who_wrote_them(path):
    with an_arena(path, [Parrot("one", "I"), Parrot("two", "II")], settings={"temperature": 0.5}) as arena:
        for _ in range(8):
            *_, last = fought(arena, "ann")
            item = arena.record.item(last["item"]["id"])
            assert last["item"]["answers"] == list(item.completions)
            wrote = dict(zip(item.row["policies"], item.completions, strict=True))
            assert wrote == {"one": "I", "two": "II"}
            assert item.row["weights"] == [f"weights of {name}" for name in item.row["policies"]]
            assert (item.row["asked_by"], item.row["sampling"]) == ("ann", {"temperature": 0.5})
            assert len(set(item.row["seeds"])) == 2 and item.row["finished"] == [True, True]


def test_a_battle_tells_the_prompt_each_piece_both_answers_and_then_what_is_to_be_voted_on(arena):
    first, *pieces, last = fought(arena, "ann", "  Why? ")
    assert first == {"prompt": "Why?"}
    for place in (0, 1):
        said = [line for line in pieces if line["place"] == place]
        assert "".join(line["text"] for line in said[:-1]).strip() == said[-1]["all"] == last["item"]["answers"][place]
        assert said[-1]["finished"] is True
    assert last == arena.next("ann")
    assert last["item"] | {"answers": []} == {"id": 1, "prompt": "Why?", "answers": [], "order": [0, 1], "given": None}


@pytest.mark.parametrize(
    ("kind", "ranks", "flags"),
    [("left", (1, 2), ()), ("right", (2, 1), ()), ("good", (1, 1), (("good",), ("good",))),
     ("bad", (1, 1), (("bad",), ("bad",))), ("skip", None, ())],
)  # fmt: skip
def test_a_vote_is_a_ranking_of_the_left_and_the_right_answer(arena, kind, ranks, flags):
    fought(arena, "ann")
    answer = arena.judge("ann", vote(arena.next("ann")["item"], kind))
    (entry,) = records.entries(arena.record.path)
    assert (entry.ranks, entry.flags, entry.order, entry.seconds) == (ranks, flags, (0, 1), 1.5)
    done = 0 if kind == "skip" else 1
    assert answer == {"judgement": 1, "item": None, "progress": {"done": done, "of": done}, "given": 0}
    assert records.check(arena.record.path) == 1


def test_the_names_are_told_after_the_vote_and_only_if_that_was_asked_for(path):
    for reveal in (False, True):
        with an_arena(path, [Parrot(name) for name in NAMES], reveal=reveal) as arena:
            *_, last = fought(arena, "ann")
            answer = arena.judge("ann", vote(last["item"], "left"))
            kept = arena.record.item(last["item"]["id"]).row["policies"]
            assert answer.get("authors") == (kept if reveal else None)


def test_the_same_vote_again_writes_nothing_and_another_one_under_its_key_is_refused(arena):
    fought(arena, "ann")
    body = vote(arena.next("ann")["item"], "left")
    assert arena.judge("ann", body) == arena.judge("ann", body)
    assert len(records.entries(arena.record.path)) == 1
    fought(arena, "ben")
    with pytest.raises(DataError, match="stands for another judgement"):
        arena.judge("ben", vote(arena.next("ben")["item"], "left", key=body["key"]))


def test_nobody_votes_on_what_was_shown_to_somebody_else_or_was_not_shown(arena):
    fought(arena, "ann")
    item = arena.next("ann")["item"]
    for annotator, told in (("ben", item), ("ann", item | {"id": 2}), ("ann", item | {"id": None})):
        with pytest.raises(DataError, match="item: is not the one that was shown"):
            arena.judge(annotator, vote(told, "left"))
    arena.judge("ann", vote(item, "left"))
    with pytest.raises(DataError, match="item: is not the one that was shown"):
        arena.judge("ann", vote(item, "right"))
    with pytest.raises(DataError, match="flags: is not a list of good, bad"):
        fought(arena, "ann")
        arena.judge("ann", vote(arena.next("ann")["item"], "left", flags=[["ugly"], []]))


def test_undo_shows_the_answers_again_and_the_vote_before_counts_no_more(arena):
    with pytest.raises(NothingToUndo):
        arena.undo("ann", {"key": uuid.uuid4().hex})
    *_, last = fought(arena, "ann")
    arena.judge("ann", vote(last["item"], "bad"))
    back = arena.undo("ann", {"key": uuid.uuid4().hex})
    assert back["item"]["given"]["flags"] == [["bad"], ["bad"]] and back["progress"]["done"] == 0
    assert back["item"] | {"given": None} == last["item"]
    arena.judge("ann", vote(back["item"], "left"))
    (said,) = records.judgements(arena.record.path)
    assert said.ranks == (1, 2) and arena.progress("ann") == {"done": 1, "of": 1}


def test_what_somebody_was_to_vote_on_when_the_server_ended_is_shown_again(path):
    policies = [Parrot(name) for name in NAMES]
    with an_arena(path, policies) as arena:
        for person, kinds in (("ann", ["left"]), ("ben", ["skip"]), ("cat", [])):
            for kind in kinds:
                fought(arena, person)
                arena.judge(person, vote(arena.next(person)["item"], kind))
            fought(arena, person)
        arena.judge("ben", vote(arena.next("ben")["item"], "good"))
        before = {person: arena.next(person) for person in ("ann", "ben", "cat")}
    with an_arena(path, policies) as again:
        assert {person: again.next(person) for person in before} == before
        assert before["ben"]["item"] is None and before["ann"]["progress"]["done"] == 1
        again.judge("cat", vote(again.next("cat")["item"], "right"))


def test_given_prompts_go_round_in_an_order_of_each_person_also_after_a_new_start(path):
    prompts = [f"prompt {number}" for number in range(6)]
    had = {"ann": [], "ben": []}
    for _ in range(2):
        with an_arena(path, [Parrot("one"), Parrot("two")], prompts) as arena:
            for person, seen in had.items():
                for _ in range(3):
                    *_, last = fought(arena, person, None)
                    arena.judge(person, vote(last["item"], "left"))
                    seen.append(last["item"]["prompt"])
    assert all(sorted(seen) == prompts for seen in had.values())
    assert had["ann"] != had["ben"]


def test_a_typed_prompt_is_a_message_to_policies_that_chat_and_a_given_one_stays_as_it_is(path):
    talk = [{"role": "user", "content": "Hi"}]
    one, two = Parrot("one", is_chat=True), Parrot("two", is_chat=True)
    with an_arena(path, [one, two], ["as it is", talk]) as arena:
        *_, last = fought(arena, "ann", "Why?")
        assert last["item"]["prompt"] == [{"role": "user", "content": "Why?"}]
        for _ in range(2):
            fought(arena, "ann", None)
    for policy in (one, two):
        assert policy.asked[0][0] == [{"role": "user", "content": "Why?"}]
        assert talk in [prompt for prompt, _ in policy.asked] and "as it is" in [prompt for prompt, _ in policy.asked]


def test_where_one_of_two_does_not_chat_each_is_asked_in_its_way_and_the_text_is_kept(path):
    one, two = Parrot("one", is_chat=True), Parrot("two")
    with an_arena(path, [one, two]) as arena:
        *_, last = fought(arena, "ann", "Why?")
    assert last["item"]["prompt"] == "Why?"
    assert (one.asked[0][0], two.asked[0][0]) == ([{"role": "user", "content": "Why?"}], "Why?")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "prompt: send this field"), ({"prompt": "a", "policy": "one"}, "prompt: send this field"),
        ({"prompt": " \n"}, "prompt: write a text"), ({"prompt": 3}, "prompt: write a text"),
        ({"prompt": "a\0b"}, "prompt: write a text"), ({"prompt": "\ud800"}, "prompt: write a text"),
        ({"prompt": "a" * 10_001}, "prompt: write a text"), ({"prompt": None}, "prompt: there are no given ones"),
        ({"prompt": "too long"}, "prompt: is too long for the models"),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_what_is_no_prompt_is_refused_without_naming_a_policy(arena, body, says):
    with pytest.raises(DataError, match=says) as told:
        arena.battle("ann", body)
    assert not any(name in str(told.value) for name in NAMES)
    assert arena.record.items() == []


@pytest.mark.parametrize("slow", [0, 1])
def test_an_answer_that_fails_ends_the_other_and_says_so_without_a_name(path, caplog, slow):
    policies = [endless("first"), Parrot("second", "x", error=RuntimeError("second: out of memory"))]
    began = time.monotonic()
    with an_arena(path, policies[:: 1 - 2 * slow], seconds=5) as arena:
        *_, last = fought(arena, "ann")
        assert last == {"error": FAILED} and arena.record.items() == [] and arena.next("ann")["item"] is None
    assert "out of memory" in caplog.text and time.monotonic() - began < 3
    assert policies[0].ended == 1


def test_answers_that_take_too_long_are_given_up(path):
    with an_arena(path, [endless("first"), Parrot("second")], seconds=0.1) as arena:
        *_, last = fought(arena, "ann")
        assert last["error"].startswith("The answers were not finished within 0.1 seconds")
        assert arena.record.items() == []


def test_who_asks_again_gives_up_what_is_still_being_written(path):
    first, second = endless("first"), endless("second")
    with an_arena(path, [first, second]) as arena:
        told, begun = [], threading.Event()
        before = arena.battle("ann", {"prompt": "a"})
        before.start(lambda line: (told.append(line), begun.set()))
        assert begun.wait(5)
        first.said = second.said = "short"
        *_, last = fought(arena, "ann", "b")
        before.join()
    assert told[-1] is None and not any("item" in line or "error" in line for line in told[:-1])
    assert [item.prompt for item in records.items(path)] == ["b"] and last["item"]["id"] == 1


def test_an_arena_that_closes_gives_up_what_is_being_written(path):
    policies = [endless("first"), endless("second")]
    began, told = time.monotonic(), []
    with an_arena(path, policies, seconds=5) as arena:
        arena.battle("ann", {"prompt": "a"}).start(told.append)
    assert time.monotonic() - began < 3 and told[-1] is None and [policy.ended for policy in policies] == [1, 1]
    assert records.items(path) == []


def test_answers_that_cannot_be_written_down_are_said_to_be_lost(arena, monkeypatch):
    def full(*given):
        raise sqlite3.OperationalError("disk is full")

    monkeypatch.setattr(arena.record, "add_item", full)
    *_, last = fought(arena, "ann")
    assert last["error"].startswith("Not saved: the record cannot be written")


def test_the_same_seed_draws_the_same_battles_and_another_one_others(tmp_path):
    def drawn(name, seed):
        with an_arena(tmp_path / name, [Parrot(each) for each in NAMES], seed=seed) as arena:
            for _ in range(12):
                fought(arena, "ann")
            return [(item.row["policies"], item.row["seeds"]) for item in arena.record.items()]

    assert drawn("a.db", 1) == drawn("b.db", 1) != drawn("c.db", 2)


@pytest.mark.parametrize(
    ("policies", "says"),
    [
        ([("first", "new weights"), ("second", "weights of second")], r"first: in .*stands for other weights"),
        ([("other", "weights of first"), ("second", "weights of second")], "other and first: have the same weights"),
        ([("new", "same"), ("newer", "same")], "have the same weights"),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_a_name_is_one_policy_for_good(path, policies, says):
    with Record(path, []) as record:
        names = ("first", "second")
        record.add_item("Why?", ["a", "b"], {"policies": names, "weights": [f"weights of {name}" for name in names],
                                             "asked_by": "ann"})  # fmt: skip
    made = [Parrot(name) for name, _ in policies]
    for policy, (_, weights) in zip(made, policies, strict=True):
        policy.weights = weights
    with pytest.raises(DataError, match=says), an_arena(path, made):
        pass


def test_a_record_of_rankings_is_refused(path):
    Record(path, items_of([("Why?", ["a", "b"])])).close()
    with pytest.raises(DataError, match="holds rankings of candidates, not votes"), an_arena(path, [Parrot("a")] * 2):
        pass


def test_who_wrote_an_answer_cannot_be_changed_in_the_record(arena):
    fought(arena, "ann")
    for column in ("policies", "weights"):
        with pytest.raises(sqlite3.IntegrityError, match="authors are only added"), arena.record.writing() as writing:
            writing.execute(f"UPDATE items SET row = json_set(row, '$.{column}[0]', 'x')")


def test_an_export_of_votes_says_who_wrote_what_and_comes_back_as_it_was(arena, path):
    for kind in ("left", "bad", "skip"):
        fought(arena, "ann")
        arena.judge("ann", vote(arena.next("ann")["item"], kind))
    arena.undo("ann", {"key": uuid.uuid4().hex})
    rows = list(exported(path))
    assert [row["policies"] for row in rows[:3]] == [item.row["policies"] for item in arena.record.items()]
    lines = path.with_name("votes.jsonl")
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert import_into(arena.record, lines) == (0, 4)


def test_several_people_at_once_get_what_they_asked(path):
    def said(prompt, seed):
        return " ".join(random.Random(seed).choice(["up", "down"]) for _ in range(5)) + f" {prompt}"

    with an_arena(path, [Parrot("one", said, pause=0.001), Parrot("two", said, pause=0.001)]) as arena:
        found = {}
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: fought(arena, f"p{n}", f"q{n}")})) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, lines in found.items():
        assert all(answer.endswith(f" q{number}") for answer in lines[-1]["item"]["answers"])
    assert sorted(item.number for item in records.items(path)) == list(range(1, 9))
