"""What the page sends: each field is looked at, and what fits is kept in the order of the completions."""

import json

import pytest

from rlhf_lightning.errors import DataError
from rlhf_lightning.people.form import LONGEST_NAME, LONGEST_NOTE, Form, name_of
from tests.people.serving import items_of

FULL = Form(rating=(1, 7), flags=("wrong", "rude"))
FOUR, TWO = items_of([("Why?", ["a", "b", "c", "d"]), ("How?", ["e", "f"])])
ORDER = [2, 0, 3, 1]


def body(**more):
    return {"key": "key-0001", "item": 1, "order": ORDER, "ranks": [1, 2, 2, 4], "seconds": 1.5} | more


def entry(form=FULL, item=FOUR, showing=0, **more):
    given = body(**more)
    return form.entry(given, item, given["order"] if item is TWO else ORDER, "ann", showing)


def test_what_was_said_in_the_order_shown_is_kept_in_the_order_of_the_completions():
    kept = entry(ratings=[7, None, 1, 2], flags=[["rude"], [], [], ["wrong", "rude"]], note="a note", showing=1)
    assert kept.order == (2, 0, 3, 1)
    assert kept.ranks == (2, 4, 1, 2)  # completion 2 stood at the top, completion 1 at the end
    assert kept.ratings == (None, 2, 7, 1)
    assert kept.flags == ((), ("wrong", "rude"), ("rude",), ())
    assert (kept.kind, kept.item, kept.annotator, kept.seconds, kept.note) == ("ranking", 1, "ann", 1.5, "a note")
    assert (kept.showing, kept.strength) == (1, None)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_the_same_opinion_is_the_same_ranking_in_whatever_order_it_was_shown(order):
    opinion = {0: 3, 1: 1, 2: 4, 3: 1}  # rank of each completion
    shown = body(order=order, ranks=[opinion[answer] for answer in order])
    assert Form().entry(shown, FOUR, order, "ann", 0).ranks == (3, 1, 4, 1)


def test_a_skip_has_no_ranks_and_may_have_a_note():
    kept = entry(ranks=None, note="none of them")
    assert (kept.kind, kept.ranks, kept.note) == ("skip", None, "none of them")


def test_what_nobody_filled_in_is_kept_as_nothing():
    kept = entry(ratings=[None] * 4, flags=[[]] * 4, note=None, strength=None)
    assert (kept.ratings, kept.flags, kept.note) == ((), (), "")


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_the_strength_of_a_preference_between_two_is_kept(strength):
    assert entry(item=TWO, order=[1, 0], ranks=[1, 2], strength=strength).strength == strength


@pytest.mark.parametrize("ranks", [[1, 1, 1, 1], [4, 3, 2, 1], [1, 1, 3, 3], [3, 1, 1, 3], [2, 2, 2, 1]])
def test_all_rankings_with_ties_are_taken(ranks):
    assert sorted(entry(ranks=ranks).ranks) == sorted(ranks)


WRONG = {
    "key": ["", "short", "x" * 65, "has space", "key-0001\n", "schlüssel", "\ud800" * 8, 12345678, None, ["key-0001"]],
    "order": [[0, 1, 2, 3], [2, 0, 3], [2, 0, 3, 1, 4], None, "2031", {"0": 2}],
    "ranks": [
        [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 5], [0, 1, 2, 3], [1, 2, 2, 3], [1, 1, 2, 3], [2, 2, 3, 4], [2] * 4,
        [1.0, 2, 3, 4], [True, 2, 3, 4], ["1", 2, 3, 4], [None, 2, 3, 4], [-1, 1, 2, 3], "1234", 1, {}, [], False,
        [[1], 2, 3, 4], [10**30, 1, 2, 3],
    ],
    "seconds": [-0.1, None, "1", True, [1], float("nan"), float("inf"), 10**400, -(10**400)],
    "ratings": [[1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 8], [1, 2, 3, 4.0], [True, 1, 2, 3], ["1", 2, 3, 4], "1234", 5, {}],
    "flags": [
        [[]], [["other"], [], [], []], [["rude"]], "rude", ["rude", [], [], []], [[1], [], [], []], {}, 1,
        [[["rude"]], [], [], []], [["\ud800"], [], [], []], [None, [], [], []],
    ],
    "note": [1, ["a"], {"a": 1}, True, "x" * (LONGEST_NOTE + 1), "half \ud83d", "a\0b"],
    "strength": [1, "1", True],
    "other": [1, None],
    "\ud800": [1],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_field_that_is_not_what_was_asked_for_is_refused_by_name(field, value):
    with pytest.raises(DataError) as error:
        entry(**{field: value})
    assert str(error.value).startswith(field if field.isprintable() else r"\ud800:")
    json.dumps(str(error.value), ensure_ascii=False).encode()  # can be sent


@pytest.mark.parametrize("field", ["key", "order", "ranks", "seconds"])
def test_a_field_that_is_missing_is_named(field):
    given = body()
    del given[field]
    with pytest.raises(DataError, match=f"^{field}: is missing"):
        FULL.entry(given, FOUR, ORDER, "ann", 0)


@pytest.mark.parametrize(
    "more",
    [
        {"strength": 0}, {"strength": 4}, {"strength": 1.0}, {"strength": "2"}, {"strength": [1]}, {"strength": True},
        {"strength": 2, "ranks": None},
    ],
)  # fmt: skip
def test_a_strength_that_is_none_is_refused(more):
    with pytest.raises(DataError, match=r"^strength: "):
        entry(**({"item": TWO, "order": [1, 0], "ranks": [1, 2]} | more))


@pytest.mark.parametrize("field", [{"ratings": [1, 2, 3, 4]}, {"flags": [["rude"], [], [], []]}, {"note": "a"}])
def test_what_was_not_asked_for_is_refused_and_empty_fields_are_taken(field):
    plain = Form(note=False)
    with pytest.raises(DataError, match=f"^{next(iter(field))}: "):
        entry(plain, **field)
    kept = entry(plain, ratings=None, flags=[[]] * 4, note="")
    assert (kept.ratings, kept.flags, kept.note) == ((), (), "")


def test_the_page_is_told_what_is_asked():
    assert FULL.public() == {
        "question": "Which answer is better?", "rating": {"low": 1, "high": 7, "label": "overall quality"},
        "flags": ["wrong", "rude"], "note": True,
    }  # fmt: skip
    assert Form(note=False).public() == {
        "question": "Which answer is better?", "rating": None, "flags": [], "note": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("ann", "ann"),
        ("  Ann \t Lee ", "Ann Lee"),
        ("Jürgen 李", "Jürgen 李"),
        ("x" * LONGEST_NAME, "x" * LONGEST_NAME),
    ],
)
def test_a_name_is_kept_with_single_spaces(given, name):
    assert name_of(given) == name


@pytest.mark.parametrize(
    "given", ["", "  ", "x" * (LONGEST_NAME + 1), "a\x00b", "a\u202eb", "\ud800", None, 1, ["ann"]]
)
def test_a_name_that_is_none_is_refused(given):
    with pytest.raises(DataError, match=r"^name: "):
        name_of(given)
