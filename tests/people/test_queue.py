"""Who gets which item, when, and in which order its answers are shown."""

from dataclasses import replace
from itertools import count

import pytest

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.people.entries import Entry
from rlhf_lightning.people.queue import APART, Plan, Queue
from tests.people.serving import items_of

ALL, ALONE = Plan(overlap=1), Plan(overlap=0)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Room:
    """A queue, and people who answer it; all that they say is kept."""

    def __init__(self, plan, number=20, answers=4, seed=0, rows=()):
        self.items = items_of([(f"prompt {n}", [f"answer {a}" for a in range(answers)]) for n in range(number)])
        if rows:
            self.items = [replace(item, row=row) for item, row in zip(self.items, rows, strict=True)]
        self.clock, self.said, self.plan, self.seed, self.keys = Clock(), [], plan, seed, count(1)
        self.queue = Queue(self.items, plan, seed, self.clock)

    def restart(self):
        self.queue = Queue(self.items, self.plan, self.seed, self.clock)
        self.queue.fill(self.said)

    def says(self, annotator, ranks=None):
        """The person answers what they are given; None where nothing is left."""
        if (turn := self.queue.next(annotator)) is None:
            return None
        kind, number = "skip" if ranks is None else "ranking", next(self.keys)
        entry = Entry(str(number), kind, turn.item, annotator, ranks, turn.order, 1.0, number=number)
        self.said.append(replace(entry, showing=turn.showing))
        self.queue.judged(self.said[-1])
        return turn

    def all_of(self, annotator, ranks=(1, 2, 3, 4)):
        return list(iter(lambda: self.says(annotator, ranks), None))


def numbers(turns):
    return [turn.item for turn in turns]


def test_a_person_gets_each_item_once():
    given = numbers(Room(ALL).all_of("ann"))
    assert sorted(given) == list(range(1, 21))
    assert given != sorted(given)


def test_the_same_item_comes_until_it_is_judged():
    room = Room(ALL)
    assert room.queue.next("ann") == room.queue.next("ann") == room.says("ann", (1, 2, 3, 4))
    assert room.queue.next("ann") != room.said[0].item


@pytest.mark.parametrize(("overlap", "shared"), [(1, 20), (5, 4), (7, 3), (0, 0)])
def test_every_mth_item_goes_to_everybody_and_the_others_to_one(overlap, shared):
    room = Room(Plan(overlap=overlap))
    given = {"ann": [], "bob": [], "cat": []}
    for _ in range(20):  # by turns
        for name, theirs in given.items():
            theirs += [turn.item for turn in [room.says(name, (1, 2, 3, 4))] if turn]
    times = [sum(theirs.count(n) for theirs in given.values()) for n in range(1, 21)]
    assert sorted(times) == [1] * (20 - shared) + [3] * shared
    assert all(len(set(theirs)) == len(theirs) for theirs in given.values())


def test_what_one_skipped_goes_to_another_and_not_to_them_again():
    room = Room(ALONE, number=3)
    assert len(room.all_of("ann", None)) == 3
    assert len(room.all_of("bob")) == 3
    assert room.queue.next("ann") is None


def test_nobody_gets_what_another_has_until_the_hold_ends():
    room = Room(Plan(overlap=0, hold=60), number=2)
    ann, bob = room.queue.next("ann"), room.queue.next("bob")
    assert ann.item != bob.item
    assert room.queue.next("cat") is None
    room.clock.now = 59
    assert room.queue.next("bob") == bob  # who asks again holds it for longer
    assert room.queue.next("cat") is None
    room.clock.now = 61
    assert room.queue.next("cat").item == ann.item
    assert room.queue.next("dan") is None


def test_who_comes_back_late_may_still_say_it():
    room = Room(Plan(overlap=0, hold=60), number=1)
    mine = room.queue.next("ann")
    room.clock.now = 61
    assert room.queue.next("bob").item == mine.item
    assert room.says("ann", (1, 2, 3, 4)) == mine
    assert room.queue.next("cat") is None


def test_who_asks_late_takes_nothing_from_who_has_it_now():
    room = Room(Plan(overlap=0, hold=60), number=1)
    mine = room.queue.next("ann")
    room.clock.now = 61
    assert room.queue.next("bob") == room.queue.next("bob") != mine
    room.clock.now = 62
    assert room.says("ann") == mine  # skips it
    assert room.queue.next("cat") is None
    room.clock.now = 122
    assert room.queue.next("cat").item == 1


def test_what_was_shown_before_a_restart_may_be_judged_after_it_whoever_is_first():
    room = Room(ALONE, number=5)
    room.says("ann", (1, 2, 3, 4))
    ann, bob = room.queue.next("ann"), room.queue.next("bob")
    room.restart()
    assert room.queue.shown("bob", bob.item) == bob
    assert room.queue.shown("ann", ann.item) == ann
    assert room.queue.shown("ann", room.said[0].item) is None  # judged before
    assert room.queue.shown("ann", 6) is room.queue.shown("ann", 0) is None


def test_a_repeat_may_be_judged_after_a_restart_too():
    room = Room(Plan(overlap=1, repeats=0.5), number=30)
    while not (turn := room.queue.next("ann")).showing:
        room.says("ann", (1, 2, 3, 4))
    room.restart()
    assert room.queue.shown("ann", turn.item) == turn


def test_what_one_takes_back_leaves_others_with_what_they_have():
    room = Room(ALONE, number=4)
    first = room.says("ann", (1, 2, 3, 4))
    bob = room.queue.next("bob")
    room.said.clear()  # taken back
    room.queue.fill(room.said)
    assert room.queue.again("ann", first.item, 0) == first
    assert room.queue.next("bob") == bob
    assert room.queue.next("ann") == first
    assert first.item not in (room.queue.next("cat").item, room.queue.next("dan").item)
    assert room.queue.next("eve") is None


def test_what_is_taken_back_late_comes_before_what_was_not_yet_shown():
    room = Room(Plan("file", 1), number=6)
    for _ in range(5):
        room.says("ann", (1, 2, 3, 4))
    room.queue.next("ann")
    room.queue.fill(room.said[1:])  # the first was taken back
    room.queue.judged(room.said[-1])  # and something else said
    assert room.queue.next("ann").item == 1


def test_what_is_taken_back_is_held_for_them():
    room = Room(ALONE, number=1)
    first = room.says("ann", (1, 2, 3, 4))
    room.queue.fill([])
    room.queue.again("ann", first.item, 0)
    assert room.queue.next("bob") is None


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_repeats_come_at_the_share_that_was_asked_for_and_far_from_the_first_time(share):
    given = Room(Plan(overlap=1, repeats=share), number=100).all_of("ann")
    again = [at for at, turn in enumerate(given) if turn.showing]
    assert len(again) == round(share * 100)
    assert sorted(turn.item for turn in given if not turn.showing) == list(range(1, 101))
    assert len({given[at].item for at in again}) == len(again)
    for at in again:
        (first,) = [n for n, turn in enumerate(given[:at]) if turn.item == given[at].item]
        assert len({turn.item for turn in given[first + 1 : at] if not turn.showing}) >= APART
    if share < 0.5:  # and not all of them at the end
        assert sum(at < 60 for at in again) >= 0.3 * len(again)


def test_without_repeats_nothing_comes_twice():
    assert not any(turn.showing for turn in Room(ALL, number=60).all_of("ann"))


@pytest.mark.parametrize("plan", [Plan(overlap=3, repeats=0.3), Plan("file", 2), Plan("disagreement", 2)])
def test_a_restart_gives_what_would_have_come_without_it(plan):
    one, other = Room(plan, number=40), Room(plan, number=40)
    for turn in range(60):
        name, ranks = ("ann", (1, 2, 3, 4)) if turn % 3 else ("bob", (4, 3, 2, 1) if turn % 2 else None)
        other.restart()
        assert one.says(name, ranks) == other.says(name, ranks)
        assert one.queue.progress(name) == other.queue.progress(name)
    assert len(one.said) > 50


def test_the_order_shown_is_a_permutation_that_differs_between_people_items_showings_and_seeds():
    rooms = [Room(Plan("file", 1, 0.5), number=40, seed=seed) for seed in (0, 0, 1)]
    ann, same, other_seed = (room.all_of("ann") for room in rooms)
    bob = rooms[0].all_of("bob")
    assert all(sorted(turn.order) == [0, 1, 2, 3] for turn in (*ann, *bob))
    assert ann == same
    shown = [{turn.item: turn.order for turn in turns if not turn.showing} for turns in (ann, bob, other_seed)]
    again = {turn.item: turn.order for turn in ann if turn.showing}
    for orders in (*shown[1:], again):
        assert sum(order == shown[0][item] for item, order in orders.items()) < len(orders) / 4
    assert len(set(shown[0].values())) > 15  # of 24
    for place in range(4):  # each completion comes first about as often
        assert 3 <= sum(order[0] == place for order in shown[0].values()) <= 20


def test_progress_counts_what_a_person_judged_and_what_is_left_for_them():
    room = Room(Plan(overlap=5), number=10)
    assert room.queue.progress("ann") == {"done": 0, "of": 10}
    for _ in range(3):
        room.says("ann", (1, 2, 3, 4))
    room.says("ann")
    closed = sum(entry.ranks is not None and entry.item not in (1, 6) for entry in room.said)
    assert room.queue.progress("ann") == {"done": 4, "of": 10}
    assert room.queue.progress("bob") == {"done": 0, "of": 10 - closed}
    rest = len(room.all_of("bob"))
    assert room.queue.progress("bob") == {"done": rest, "of": rest}
    room.all_of("ann")
    done = room.queue.progress("ann")
    assert done["done"] == done["of"]


def test_the_order_of_the_file_is_kept():
    assert numbers(Room(Plan("file", 1)).all_of("ann")) == list(range(1, 21))


def test_what_a_judge_is_least_sure_of_comes_first():
    gaps = [{"scores": [0.0, gap, -9.0]} for gap in (3.0, 0.5, 2.0)]
    assert numbers(Room(Plan("uncertain", 1), 3, rows=gaps).all_of("ann")) == [2, 3, 1]
    spread = [{"scores_std": [0.1, 0.3]}, {}, {"scores_std": [2.0, 2.0]}]
    assert numbers(Room(Plan("uncertain", 1), 3, rows=spread).all_of("ann")) == [3, 1, 2]
    with pytest.raises(ConfigError, match="--order uncertain: no row of the candidates has scores or scores_std"):
        Room(Plan("uncertain"))


def test_what_others_rank_differently_comes_first():
    room = Room(Plan("disagreement", 1))
    for at in range(20):
        room.says("ann", (1, 2, 3, 4))
        room.says("bob", {5: (4, 3, 2, 1), 9: (2, 1, 3, 4)}.get(at, (1, 2, 3, 4)))
    disputed = [room.said[2 * at].item for at in (5, 9)]
    assert [entry.item for entry in room.said[10:12]] == [disputed[0]] * 2
    given = numbers(room.all_of("cat"))
    assert given[:2] == disputed
    assert sorted(given) == list(range(1, 21))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"order": "best"}, "--order best: choose one of random, file, uncertain, disagreement"),
        ({"overlap": -1}, "--overlap"),
        ({"repeats": -0.1}, "--repeats"),
        ({"repeats": 0.6}, "--repeats"),
        ({"repeats": float("nan")}, "--repeats"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        Plan(**settings)
