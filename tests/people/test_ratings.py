import random

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from rlhf_lightning.errors import DataError
from rlhf_lightning.people.ratings import Vote, bradley_terry, wilson, win_rates


def drawn(strengths, count, seed, ties=0.0):
    draw, names = random.Random(seed), sorted(strengths)
    votes = []
    for number in range(count):
        first, second = draw.sample(names, 2)
        wins = draw.random() < 1 / (1 + np.exp(strengths[second] - strengths[first]))
        share = 0.5 if draw.random() < ties else float(wins)
        votes.append(Vote(first, second, share, f"voter {number % 7}" if number % 2 else ""))
    return votes


def test_wilsons_interval_is_where_the_score_test_just_rejects():
    wins, votes = 8, 10
    found = wilson(wins, votes)
    for end in (found.low, found.high):
        z = (wins / votes - end) / (end * (1 - end) / votes) ** 0.5
        assert 2 * norm.sf(abs(z)) == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize(("wins", "votes"), [(0, 5), (5, 5), (0, 0)])
def test_wilsons_interval_stays_between_0_and_1(wins, votes):
    found = wilson(wins, votes)
    assert 0 <= found.low <= found.share <= found.high <= 1 and found.high - found.low > 0.3


def test_win_rates_count_a_vote_alike_whoever_was_shown_first():
    votes = [Vote("a", "b", 1.0), Vote("b", "a", 0.0), Vote("b", "a", 0.0), Vote("a", "b", 0.5)]
    assert win_rates(votes)["a", "b"].share == pytest.approx(3.5 / 4)


@pytest.mark.parametrize("seed", range(4))
def test_ratings_are_where_scipy_finds_the_largest_likelihood(seed):
    votes = drawn({"a": 0.0, "b": 0.8, "c": -0.5, "d": 0.3}, 120, seed, ties=0.2)
    names = ["a", "b", "c", "d"]

    def loss(free):
        at = dict(zip(names, [0.0, *free], strict=True))
        return sum(np.logaddexp(0, at[v.second] - at[v.first]) * v.share
                   + np.logaddexp(0, at[v.first] - at[v.second]) * (1 - v.share) for v in votes)  # fmt: skip

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x
    found = {one.policy: one.rating for one in bradley_terry(votes, anchor="a")}
    assert [found[name] for name in names] == pytest.approx([0.0, *best], abs=1e-5)
    assert sum(one.rating for one in bradley_terry(votes)) == pytest.approx(0, abs=1e-9)


def test_with_two_policies_the_error_is_that_of_a_share_on_the_scale_of_log_odds():
    votes = [Vote("a", "b", 1.0)] * 30 + [Vote("a", "b", 0.0)] * 10
    (a, b) = bradley_terry(votes, anchor="b")
    assert (a.rating, b.rating, b.stderr) == (pytest.approx(np.log(3)), 0, 0)
    assert a.stderr == pytest.approx((1 / 30 + 1 / 10) ** 0.5)
    assert (a.votes, b.votes) == (40, 40)


def test_the_interval_holds_the_truth_about_95_times_of_100():
    strengths = {"a": 0.0, "b": 0.7, "c": -0.4}
    inside = 0
    for seed in range(200):
        found = {one.policy: one for one in bradley_terry(drawn(strengths, 150, seed), anchor="a")}
        inside += found["b"].low < 0.7 < found["b"].high
    assert 0.90 <= inside / 200 <= 0.99


def test_votes_of_one_cluster_count_as_one_when_they_are_the_same_vote_again():
    single = [Vote("a", "b", float(n % 3 > 0), f"p{n}") for n in range(60)]
    again = [vote for vote in single for _ in range(5)]
    alone = [Vote(vote.first, vote.second, vote.share) for vote in again]
    first, clustered, counted = (bradley_terry(votes, anchor="b")[0].stderr for votes in (single, again, alone))
    assert clustered == pytest.approx(first) and counted == pytest.approx(first / 5**0.5)


def test_ties_alone_say_that_two_are_equal():
    a, b = bradley_terry([Vote("a", "b", 0.5)] * 20, anchor="b")
    assert a.rating == b.rating == 0 and a.stderr == 0


def test_ratings_that_would_be_infinite_are_refused_and_a_prior_bounds_them():
    votes = [Vote("a", "b", 1.0)] * 5 + [Vote("b", "c", 1.0), Vote("b", "c", 0.0)]
    with pytest.raises(DataError, match="b has not yet won against a"):
        bradley_terry(votes)
    found = {one.policy: one.rating for one in bradley_terry(votes, prior=1.0)}
    assert 5 > found["a"] > found["b"]


def test_policies_that_never_met_not_even_through_others_are_not_rated():
    both = [Vote(one, two, share) for one, two in (("a", "b"), ("c", "d")) for share in (0.0, 1.0)]
    with pytest.raises(DataError, match="a has not yet won against c"):
        bradley_terry(both)


@pytest.mark.parametrize(
    ("votes", "anchor", "says"), [([], None, "no vote"), ([Vote("a", "b", 0.5)], "x", "x: no vote")]
)
def test_what_cannot_be_rated_is_said(votes, anchor, says):
    with pytest.raises(DataError, match=says):
        bradley_terry(votes, anchor)
