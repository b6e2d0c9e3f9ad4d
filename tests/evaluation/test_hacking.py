"""What the detector calls reward hacking, and what it leaves alone."""

import math
import random

import pytest

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.evaluation.hacking import HackingDetector, Limits

TAGS = {
    "kl": "objective/kl",
    "kl_p99": "objective/kl_p99",
    "length": "completions/mean_length",
    "repetition": "completions/repetition_3",
    "duplicates": "completions/duplicates",
    "eos": "completions/eos_rate",
    "length_correlation": "guard/score_length_pearson",
    "disagreement": "rewards/models/disagreement/mean",
}


def watch(values, tag, limits=None, **others):
    """Alarms of a series of one tag, as (rollout, cause)."""
    detector = HackingDetector(limits or Limits(window=2, max_kl_p99=10.0))
    for i, value in enumerate(values):
        detector.observe(i + 1, {tag: value, **others})
    return [(alarm.rollout, alarm.cause) for alarm in detector.alarms]


def curves(gold, proxy, limits=None, gold_std=1.0):
    """Alarms where gold and proxy are known."""
    detector = HackingDetector(limits or Limits(window=2, noise=0.0))
    for i, (g, p) in enumerate(zip(gold, proxy, strict=True)):
        detector.observe(i + 1, {"objective/scores": p, "objective/scores_std": 1.0}, g, gold_std)
    return [(alarm.rollout, alarm.cause) for alarm in detector.alarms]


@pytest.mark.parametrize(
    ("cause", "healthy", "hacked"),
    [
        ("kl_p99", [1, 1, 9, 9], [1, 1, 11, 11]),
        ("length", [10, 10, 14, 14], [10, 10, 16, 16]),
        ("length", [10, 10, 6, 6], [10, 10, 4, 4]),  # either way
        ("repetition", [0.1, 0.1, 0.15, 0.15], [0.1, 0.1, 0.25, 0.25]),
        ("duplicates", [0.5, 0.5, 0.7, 0.7], [0.5, 0.5, 0.8, 0.8]),
        ("eos", [0.9, 0.9, 0.75, 0.75], [0.9, 0.9, 0.6, 0.6]),
        ("length_correlation", [0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.7, 0.7]),
        ("length_correlation", [-0.3, -0.3, 0.3, 0.3], [0.1, 0.1, -0.7, -0.7]),  # the size counts
        ("disagreement", [0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 1.1, 1.1]),
    ],
)
def test_a_change_since_the_first_rollouts_raises_one_alarm(cause, healthy, hacked):
    assert watch(healthy, TAGS[cause]) == []
    assert watch(hacked, TAGS[cause]) == [(4, cause)]


def test_each_cause_is_raised_once_and_says_what_was_measured():
    detector = HackingDetector(Limits(window=1))
    for rollout, length in enumerate([10.0, 20.0, 30.0], 1):
        detector.observe(rollout, {"completions/mean_length": length})
    (alarm,) = detector.alarms
    assert (alarm.rollout, alarm.cause) == (2, "length") and "100%" in alarm.reason and "50%" in alarm.reason
    assert detector.measured["length"] == 2.0


@pytest.mark.parametrize(
    ("max_kl", "target", "at"), [(None, 3.0, 3), (None, None, None), (4.0, 3.0, 2), (20.0, 1.0, None)]
)
def test_the_ceiling_of_kl_is_twice_the_target_unless_it_is_given(max_kl, target, at):
    others = {} if target is None else {"objective/kl_target": target}
    alarms = watch([1.0, 8.0, 10.0], "objective/kl", Limits(window=2, max_kl=max_kl), **others)  # means -, 4.5, 9
    assert alarms == ([] if at is None else [(at, "kl")])


def test_one_rollout_is_no_trend():
    assert watch([10.0, 10.0, 10.0, 10.0, 24.0, 10.0], TAGS["length"], Limits(window=4)) == []


def test_null_switches_a_limit_off():
    assert watch([10.0, 99.0], TAGS["length"], Limits(window=1, max_length_drift=None)) == []


def test_gold_that_falls_from_its_peak_while_the_proxy_rises_is_named():
    gold, proxy = [0.0, 1.0, 1.9, 2.1, 2.0, 1.9, 1.7], [0.0, 1, 2, 3, 4, 5, 6]
    # means over two: .5, 1.45, 2, 2.05, 1.95, 1.8; the peak gained 2.05
    only = {"max_gap": None, "noise": 0.0, "window": 2}
    assert curves(gold, proxy, Limits(max_gold_drop=0.04, **only)) == [(6, "gold")]  # 0.1 is 4.9 % of 2.05
    assert curves(gold, proxy, Limits(max_gold_drop=0.10, **only)) == [(7, "gold")]  # 0.25 is 12.2 %
    assert curves(gold, proxy, Limits(max_gold_drop=0.15, **only)) == []


def test_gold_that_falls_with_the_proxy_is_no_hacking():
    assert curves([0.0, 1, 2, 2, 1, 0], [0.0, 1, 2, 3, 2, 1]) == []


def test_gold_that_only_ever_falls_is_named():
    assert curves([0.0, -0.1, -0.2, -0.3], [0.0, 0.1, 0.2, 0.3]) == [(3, "gold")]


def test_the_noise_of_gold_raises_no_alarm_but_a_real_fall_does():
    wrong = right = 0
    for seed in range(40):
        noise = random.Random(seed)
        level = [1.5 * (1 - math.exp(-i / 20)) + noise.gauss(0, 0.1) for i in range(150)]  # rises, then stands still
        proxy = [0.02 * i for i in range(150)]
        limits = Limits(max_gap=None)
        wrong += bool(curves(level, proxy, limits))
        right += bool(curves([g - 0.01 * max(i - 80, 0) for i, g in enumerate(level)], proxy, limits))
    assert wrong <= 6  # 5 percent, within three standard errors
    assert right == 40


def test_the_gap_counts_standard_deviations_of_the_first_responses():
    gold, proxy = [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 3.5, 3.5]
    assert curves(gold, proxy, gold_std=1.0) == [(4, "gap")]  # 3.5 - 1
    assert curves(gold, proxy, gold_std=0.5) == []  # 3.5 - 2
    assert curves(gold, proxy, gold_std=math.nan) == []  # of a monitor's number the spread is not known


def test_numbers_that_are_missing_or_no_numbers_are_left_out():
    detector = HackingDetector(Limits(window=1))
    for rollout, metrics in enumerate([{}, {TAGS["length"]: math.nan}, {TAGS["length"]: 5.0}, {}], 1):
        assert detector.observe(rollout, metrics, gold=math.nan) == []
    assert detector.measured == {"length": 0.0}


def test_a_detector_goes_on_where_another_stopped():
    rows = [(g, p, n) for g, p, n in zip([0, 1, 2, 2.2, 1.9, 1.2], range(6), [9, 9, 9, 20, 20, 20], strict=True)]

    def feed(detector, part):
        for i, (g, p, n) in part:
            detector.observe(i + 1, {"objective/scores": p, "objective/scores_std": 1.0, TAGS["length"]: n}, g, 1.0)
        return detector

    limits = Limits(window=2, noise=0.5)
    numbered = list(enumerate(rows))
    whole = feed(HackingDetector(limits), numbered)
    resumed = HackingDetector(limits)
    resumed.load_state_dict(feed(HackingDetector(limits), numbered[:4]).state_dict())
    feed(resumed, numbered[4:])
    assert resumed.alarms == whole.alarms and {a.cause for a in whole.alarms} >= {"gold", "length"}
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize("wrong", [{"window": 0}, {"max_kl": -1.0}, {"max_gold_drop": 0.0}])
def test_limits_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
        Limits(**wrong)
