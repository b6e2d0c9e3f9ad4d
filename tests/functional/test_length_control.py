import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rlhf_lightning.functional.length_control import length_controlled_win_rate


def pairs(count, seed, taste=1.2, skill=0.3):
    """Pairs whose longer answer is liked better, and those of one prompt stand next to each other."""
    draw = np.random.default_rng(seed)
    difference = draw.normal(3, 20, count)
    likely = 1 / (1 + np.exp(-(skill + taste * np.tanh(difference / 20))))
    outcomes = np.where(draw.random(count) < 0.1, 0.5, draw.random(count) < likely)
    return outcomes, difference, np.arange(count) // 2


def controlled(outcomes, difference, cluster, **more):
    return length_controlled_win_rate(*map(torch.tensor, (outcomes, difference, cluster)), **more)


@pytest.mark.parametrize("count", [30, 200, 1000])
def test_the_rate_is_that_of_a_plain_logistic_regression(count):
    y, difference, cluster = pairs(count, seed=count)
    x = np.tanh(difference / difference.std())[:, None]
    fit = LogisticRegression(C=np.inf, tol=1e-14, max_iter=10_000, solver="newton-cholesky").fit(
        np.concatenate([x, x]), np.repeat([1, 0], count), sample_weight=np.concatenate([y, 1 - y])
    )
    expected = 1 / (1 + math.exp(-fit.intercept_[0]))
    assert controlled(y, difference, cluster, resamples=2).win_rate == pytest.approx(expected, abs=1e-9)


def test_a_judge_that_likes_length_alone_makes_no_winner():
    _, difference, cluster = pairs(4000, seed=0, skill=0.0)
    longer = difference + 30  # ours are longer by far
    wins = (np.random.default_rng(1).random(4000) < 1 / (1 + np.exp(-1.5 * np.tanh(longer / longer.std())))) * 1.0
    rate = controlled(wins, longer, cluster)
    assert wins.mean() > 0.65
    assert rate.low < 0.5 < rate.high


def test_the_interval_holds_the_truth_as_often_as_it_says():
    truth = 1 / (1 + math.exp(-0.3))
    held = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        difference = draw.normal(0, 20, 200)
        likely = 1 / (1 + np.exp(-(0.3 + np.tanh(difference / difference.std()))))
        rate = controlled((draw.random(200) < likely) * 1.0, difference, np.arange(200), resamples=100)
        held += rate.low <= truth <= rate.high
    assert 88 <= held <= 99


@pytest.mark.parametrize(
    ("outcomes", "difference", "rate"),
    [
        ([1.0, 1.0, 1.0], [1.0, 5.0, -2.0], 1.0),
        ([0.0, 0.0, 0.0], [1.0, 5.0, -2.0], 0.0),
        ([0.75, 0.75, 0.75], [1.0, 5.0, -2.0], 0.75),
        ([0.5, 0.5, 0.5], [1.0, 5.0, -2.0], 0.5),
        ([1.0, 0.0, 1.0, 1.0], [4.0, 4.0, 4.0, 4.0], 0.75),
        ([1.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0], 0.625),
    ],
    ids=["all won", "all lost", "all as likely", "all tied", "all longer by as much", "all of one length"],
)
def test_where_lengths_say_nothing(outcomes, difference, rate):
    found = controlled(outcomes, difference, range(len(outcomes)))
    assert found.win_rate == pytest.approx(rate, abs=1e-9)
    assert found.low <= rate + 1e-9 and found.high >= rate - 1e-9


def test_there_is_no_estimate_where_length_alone_tells_wins_from_losses():
    assert controlled([1.0, 1.0, 0.0, 0.0], [3.0, 4.0, -3.0, -4.0], range(4)) is None


@pytest.mark.parametrize(
    ("outcomes", "cluster"),
    [
        ([0.7], [0]),
        ([0.5] * 4, range(4)),
        ([0.5] * 4, [0] * 4),
        ([1.0, 0.0, 1.0, 0.0], [0] * 4),
        ([1.0, 0.0, 1.0, 0.0], range(4)),
    ],
    ids=["one pair", "ties", "ties of one prompt", "one prompt", "four prompts"],
)
def test_what_is_little_has_the_width_of_wilsons_interval(outcomes, cluster):
    found = controlled(outcomes, [3.0, 4.0, -3.0, 0.0][: len(outcomes)], cluster)
    n, p, z2 = len(set(cluster)), found.win_rate, 1.959963984540054**2
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    assert found.low <= center - half + 1e-9 and found.high >= center + half - 1e-9
