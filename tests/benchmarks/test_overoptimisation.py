"""The toy of `benchmarks.overoptimisation` on one seed: a learned score spoils the true one, the guard stops in time,
and an ensemble helps."""

import logging

import pytest

from benchmarks.bigram import Toy
from benchmarks.overoptimisation import COEF, MEMBERS, Curve, Outcome, table, through_best_of_n, through_ppo
from rlhf_lightning.scoring import EnsembleScorer

SEED = 0


@pytest.fixture(scope="module")
def toy():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return Toy(SEED)


@pytest.fixture(scope="module")
def proxies(toy):
    return [toy.proxy(f"proxy_{number}") for number in range(MEMBERS)]


def test_best_of_n_raises_the_proxy_and_in_the_end_lowers_gold(toy, proxies):
    curve = through_best_of_n(toy, proxies[0], chunks=1)
    assert curve.proxy == sorted(curve.proxy)
    assert 0 < curve.peak < len(curve.gold) - 1 and curve.fall > 0.05
    assert curve.fit(rl=False).r2 > 0.95  # Gao's form


def test_the_guard_stops_ppo_before_a_tenth_of_the_gain_is_lost(toy, proxies):
    curve = through_ppo(toy, proxies[0], SEED, rollouts=110, rate=0.01, held_out=4096, action="stop")
    assert curve.alarm is not None
    assert curve.peak < curve.alarm == len(curve.gold) - 1 < 110
    assert 0.9 < curve.gain(curve.alarm) < 1
    assert curve.proxy_rises


def test_an_ensemble_halves_the_fall(toy, proxies):
    scorers = proxies[0], EnsembleScorer(proxies, coef=COEF)
    alone, together = (through_ppo(toy, s, SEED, rollouts=50, rate=0.03, held_out=64) for s in scorers)
    assert alone.fall > 1.0 and together.fall < alone.fall / 2
    assert together.fall < alone.until(together.distance[-1]).fall / 2  # as far from the start


GOOD = {
    "best_of_n": Curve([0.0, 1.0, 2.0], [0.0, 1.0, 0.9], [0.0, 1.0, 2.0]),
    "alone": Curve([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 0.95, 0.0], [0.0, 1.0, 2.0, 3.0], alarm=2),
    "ensemble": Curve([0.0, 1.0, 3.0], [0.0, 1.0, 0.9], [0.0, 1.0, 2.0]),
}


@pytest.mark.parametrize(
    ("curve", "change", "fault"),
    [
        ("alone", {}, None),
        ("best_of_n", {"gold": [0.0, 1.0, 1.1]}, "best-of-n: gold falls"),
        ("best_of_n", {"proxy": [0.0, 1.0, 0.9]}, "best-of-n: gold falls"),
        ("alone", {"gold": [0.0, 1.0, 0.95, 0.92]}, "PPO: gold falls"),
        ("alone", {"proxy": [0.0, 1.0, 2.0, 0.5]}, "PPO: gold falls"),
        ("alone", {"gold": [0.0, 1.0, 0.85, 0.0]}, "the alarm while gold"),  # too late
        ("alone", {"alarm": 1, "gold": [0.0, 0.5, 1.0, 0.0]}, "the alarm while gold"),  # too early
        ("alone", {"alarm": None}, "the alarm while gold"),
        ("ensemble", {"gold": [0.0, 1.0, 0.3]}, "the ensemble halves the fall"),
        ("ensemble", {"distance": [0.0, 1.0, 2.5]}, "the ensemble halves the fall at the same KL"),
    ],
)
def test_the_bars_of_the_benchmark_are_seen_to_be_missed(curve, change, fault):
    outcome = Outcome(0, **GOOD | {curve: GOOD[curve]._replace(**change)}, seconds=0.0)
    assert fault in str(outcome.faults()) if fault else outcome.faults() == []
    assert table([outcome]).count("\n") == 1


def test_gold_and_kl_of_a_policy_are_exact(toy):
    other = Toy(SEED)
    other.first, other.after = 2 * other.first, 0.3 * other.after.flip(0)
    ids = other.sample(40_000)
    gold, kl = toy.exact(other.first, other.after)
    ratio = sum(
        model.first.log_softmax(-1)[ids[:, 0]] * sign
        + sign * model.after.log_softmax(-1)[ids[:, :-1], ids[:, 1:]].sum(1)
        for model, sign in ((other, 1), (toy, -1))
    )
    for exact, sampled in ((gold, toy.gold.of(ids)), (kl, ratio)):
        assert abs(exact - sampled.mean()) < 4 * sampled.std() / len(ids) ** 0.5
