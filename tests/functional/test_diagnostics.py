import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss
from torch.testing import assert_close

from rlhf_lightning.functional.diagnostics import (
    average_ranks,
    calibration,
    clustered_interval,
    distinct_n,
    fit_temperature,
    repetition_n,
    wilson_interval,
)
from tests.support.examples import few_examples


def test_scores_that_mean_what_they_say_are_calibrated():
    # three of four pairs at log-odds log 3 are right: confidence 0.75, accuracy 0.75
    gap = torch.tensor([1.0, 1.0, 1.0, -1.0]).double() * math.log(3)
    out = calibration(gap, torch.zeros(4).double())
    assert_close((out.ece.item(), out.accuracy.item()), (0.0, 0.75))
    # 0.75 is an edge of the ten bins, so rounding may put it in either neighbour
    assert out.bins[:, 1].sum() == 4
    assert out.bins[0, 0] in (4, 5)
    assert_close(out.brier.item(), brier_score_loss([1] * 4, gap.sigmoid().tolist()))
    assert_close(out.nll.item(), -gap.sigmoid().log().mean().item())


def test_boasting_is_seen_in_the_calibration_error():
    gap = torch.tensor([1.0, 1.0, 1.0, -1.0]) * 20
    assert_close(calibration(gap, torch.zeros(4)).ece, torch.tensor(0.25))


def test_certainty_falls_in_the_last_bin_and_ties_are_half_right():
    out = calibration(torch.tensor([100.0, 0.0]), torch.tensor([0.0, 0.0]), n_bins=4)
    assert out.bins.tolist() == [[0, 1, 0.5, 0.5], [3, 1, 1, 1]]
    assert out.accuracy == 0.75


def test_the_fitted_temperature_has_the_lowest_nll_and_undoes_boasting():
    generator = torch.Generator().manual_seed(0)
    gap = torch.randn(400, generator=generator, dtype=torch.float64)
    right = torch.rand(400, generator=generator, dtype=torch.float64) < gap.sigmoid()
    boast, zero = 5 * torch.where(right, gap, -gap), torch.zeros(400).double()
    best = fit_temperature(boast, zero)
    assert 4 < best < 6.5
    nll = {scale: calibration(boast / (best * scale), zero).nll for scale in (0.99, 1.0, 1.01)}
    assert nll[1.0] < min(nll[0.99], nll[1.01])
    assert calibration(boast / best, zero).ece < calibration(boast, zero).ece / 3


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_temperature_scales_with_the_scores_and_ignores_their_level(scale):
    chosen, rejected = torch.tensor([1.0, 3.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, -1.0, 0.5])
    expected = scale * fit_temperature(chosen, rejected)
    assert_close(fit_temperature(scale * chosen, scale * rejected), expected)
    assert_close(fit_temperature(chosen + 7, rejected + 7), expected / scale)


def test_temperatures_end_where_no_finite_one_is_best():
    up, zero = torch.tensor([1.0, 3.0]), torch.zeros(2)
    assert_close(fit_temperature(up, zero), torch.tensor(2e-3))  # all right: as sharp as allowed
    assert_close(fit_temperature(-up, zero), torch.tensor(2e3))  # all wrong: as flat as allowed
    assert fit_temperature(zero, zero) == 1
    assert fit_temperature(zero[:0], zero[:0]) == 1


@few_examples
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_equal_entries_share_their_mean_rank(values):
    ordered = sorted(values)
    expected = [(2 * ordered.index(v) + 1 + ordered.count(v)) / 2 for v in values]
    assert average_ranks(torch.tensor(values).double()).tolist() == expected


@pytest.mark.parametrize(("wins", "low", "high"), [(0, 0.0, 0.2775), (5, 0.2366, 0.7634), (10, 0.7225, 1.0)])
def test_wilson_interval_of_ten_trials_matches_the_tables(wins, low, high):
    out = wilson_interval(wins, 0, 10 - wins)
    assert_close((out.low, out.high), (low, high), atol=5e-5, rtol=0)


def test_pairs_of_one_prompt_count_as_what_they_add_to_each_other():
    right = torch.tensor([True, True, True, False] * 10)
    alone = clustered_interval(right, torch.arange(40))
    assert_close((alone.low, alone.high), tuple(wilson_interval(30, 0, 10)[1:]), atol=2e-3, rtol=0)
    copies = clustered_interval(right.repeat_interleave(6), torch.arange(40).repeat_interleave(6))
    assert_close((copies.low, copies.high), (alone.low, alone.high))
    assert clustered_interval(torch.ones(60).bool(), torch.arange(60) // 6) == wilson_interval(10, 0, 0)
    assert clustered_interval(right[:0], right[:0]) == (0.5, 0.0, 1.0)


def test_ties_are_half_a_win_and_nothing_is_unknown():
    assert wilson_interval(1, 2, 1) == wilson_interval(2, 0, 2)
    assert wilson_interval(0, 0, 0) == (0.5, 0.0, 1.0)


def test_looping_text_repeats_and_short_text_does_not():
    assert repetition_n([1, 2] * 10, 2) == 1 - 2 / 19
    assert repetition_n([1], 2) == 0
    assert distinct_n([], 2) == distinct_n([[1]], 2) == 0
    assert distinct_n([[1, 2], [1, 2]], 2) == 0.5
