"""From what people said to win rates and ratings of policies, on votes whose figures can be counted by hand."""

import json
import math

import pytest

from rlhf_lightning.errors import DataError
from rlhf_lightning.people.judgements import Item, Judgement
from rlhf_lightning.people.ratings import Vote, wilson
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.votes import compared, policies_of, rated, read_votes, standings, weights_by_name
from tests.people.serving import items_of

BAD, GOOD = (("bad",), ("bad",)), (("good",), ("good",))
# Who stood left and right, the ranks, the marks; None: skipped.
SAID = [
    ("sft", "ppo", (2, 1), ()), ("ppo", "sft", (1, 2), ()), ("ppo", "sft", (1, 2), ()), ("sft", "ppo", (1, 2), ()),
    ("sft", "ppo", (1, 1), BAD), ("ppo", "sft", (1, 1), GOOD), ("ppo", "sft", (1, 1), ()), ("sft", "ppo", None, ()),
    ("base", "sft", (2, 1), ()), ("sft", "base", (2, 1), ()),
]  # fmt: skip


def record_of(said):
    """Items and judgements; the answer at the left has 3 characters, the one at the right 5."""
    items = [
        Item(n, f"prompt {n}", ("abc", "abcde"), {"policies": [left, right], "weights": [f"w {left}", f"w {right}"]})
        for n, (left, right, *_) in enumerate(said, 1)
    ]
    judgements = [
        Judgement(n, n, f"person {n % 2}", ranks, (0, 1), 1.0, "", flags=flags)
        for n, (_, _, ranks, flags) in enumerate(said, 1)
    ]
    return items, judgements


def test_a_vote_goes_to_the_answer_with_the_better_rank_and_votes_on_a_prompt_go_together():
    items, judgements = record_of(SAID[:3])
    found = compared(items, judgements)
    assert [one.vote for one in found[:2]] == [
        Vote("sft", "ppo", 0.0, '"prompt 1"'), Vote("ppo", "sft", 1.0, '"prompt 2"')]  # fmt: skip
    assert found[0].lengths == (3, 5) and found[0].prompt == '"prompt 1"'


def test_win_rates_count_ties_half_and_skips_not_at_all():
    found = standings(*record_of(SAID))
    assert (found.votes, found.skipped, found.people) == (9, 1, 2)
    base, ppo = found.pairs
    assert (base.first, base.second, base.wins, base.losses) == ("base", "sft", 1, 1)
    assert (ppo.first, ppo.second, ppo.wins, ppo.losses, ppo.both_good, ppo.both_bad) == ("ppo", "sft", 3, 1, 2, 1)
    assert ppo.win_rate == wilson(4.5, 7)
    assert found.left == wilson(0 + 1 + 1 + 1 + 3 * 0.5 + 0 + 0, 9)


def test_ratings_are_the_log_odds_that_explain_the_votes():
    found = standings(*record_of(SAID), anchor="sft")
    assert {one.policy: one.rating for one in found.ratings} == pytest.approx(
        {"sft": 0.0, "ppo": math.log(4.5 / 2.5), "base": 0.0}, abs=1e-6)  # fmt: skip
    assert found.prior == 0


def test_where_a_policy_has_won_all_a_prior_keeps_its_rating_finite_and_its_interval_wide():
    (few, _), prior = rated([Vote("a", "b", 1.0, "1")])
    assert prior == 1.0 and few.policy == "a" and few.low < 0 < few.rating < few.high < 5
    many = rated([Vote("a", "b", 1.0, str(n)) for n in range(50)])[0][0]
    assert many.low > 0 and many.rating > few.rating
    assert rated([Vote("a", "b", 1.0, "1"), Vote("a", "b", 0.0, "2")])[1] == 0.0


def test_the_error_of_a_rating_with_a_prior_is_that_of_the_curvature_at_its_top():
    """One vote, and each of two policies once tied with the mean: a likelihood of one number, looked at by hand."""

    def likelihood(x):  # ratings x and -x
        return -math.log1p(math.exp(-2 * x)) + 2 * 0.5 * (-math.log1p(math.exp(-x)) - math.log1p(math.exp(x)))

    (one, _), _ = rated([Vote("a", "b", 1.0)])
    h = 1e-3
    slope = (likelihood(one.rating + h) - likelihood(one.rating - h)) / (2 * h)
    curvature = (likelihood(one.rating + h) - 2 * likelihood(one.rating) + likelihood(one.rating - h)) / h**2
    assert slope == pytest.approx(0, abs=1e-5) and one.stderr == pytest.approx((-curvature) ** -0.5, rel=1e-4)


def test_nothing_said_is_no_standing_and_no_error():
    found = standings(*record_of([("sft", "ppo", None, ())]))
    assert (found.votes, found.skipped, found.pairs, found.ratings) == (0, 1, (), ())
    assert json.loads(json.dumps(found.summary()))["left"] == {"share": 0.5, "low": 0.0, "high": 1.0}


def test_candidates_whose_policies_are_known_can_be_ranked_by_label_and_count_as_votes_of_each_two():
    item = Item(1, "p", ("a", "b", "c"), {"policies": ["x", "y", "z"], "weights": ["1", "2", "3"]})
    said = [Judgement(1, 1, "ann", (2, 1, 2), (2, 0, 1), 1.0, "")]
    found = [(one.vote.first, one.vote.second, one.vote.share) for one in compared([item], said)]
    assert found == [("z", "x", 0.5), ("z", "y", 0.0), ("x", "y", 0.0)]


def test_a_record_without_policies_is_no_record_of_votes(tmp_path):
    path = tmp_path / "labels.db"
    Record(path, items_of([("Why?", ["a", "b"])])).close()
    with pytest.raises(DataError, match=r"labels\.db: holds rankings of candidates, not votes; `rlhf-lightning arena`"):
        read_votes(path)


def test_names_and_weights_of_a_record_are_one_to_one():
    items, _ = record_of(SAID)
    known = policies_of(items, "votes.db")
    assert known == {"sft": "w sft", "ppo": "w ppo", "base": "w base"}
    assert weights_by_name(known, {"ppo": "w ppo", "dpo": "w dpo"}, "votes.db") == known | {"dpo": "w dpo"}
    for given in ({"ppo": "other"}, {"new": "w ppo"}, {"new": "a", "newer": "a"}):
        with pytest.raises(DataError):
            weights_by_name(known, given, "votes.db")
