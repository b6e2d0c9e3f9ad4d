"""Correlations and AUROC against formulas written out, ties, constants and large scores included."""

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error

from rlhf_lightning.functional.diagnostics import average_ranks, calibration
from rlhf_lightning.metrics.correlation import auroc, length_bias, pearson


def plain_pearson(x, y):
    a, b = x - x.mean(), y - y.mean()
    return ((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()).item()


def scores_and_lengths(number, ties=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(5, 50, (number,), generator=generator)
    lengths[0], lengths[1] = 4, 50  # they vary
    scores = torch.randn(number, generator=generator).to(dtype) + 0.1 * lengths
    return (scores / 2).round() if ties else scores, lengths


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("number", [2, 3, 5, 40, 1000])
def test_correlations_are_those_of_the_formulas_written_out(number, ties):
    scores, lengths = scores_and_lengths(number, ties)
    x, y = scores.double(), lengths.double()
    found = length_bias(scores, lengths)
    assert found.pearson == pytest.approx(plain_pearson(x, y), rel=1e-12)
    assert found.spearman == pytest.approx(plain_pearson(average_ranks(x), average_ranks(y)), rel=1e-12)
    design = torch.stack([y, torch.ones_like(y)], 1)
    assert found.slope_per_token == pytest.approx(
        torch.linalg.lstsq(design, x[:, None]).solution[0, 0].item(), rel=1e-9
    )
    assert length_bias(scores.double().exp(), lengths).spearman == found.spearman


def test_scores_in_line_with_length_correlate_fully():
    assert length_bias(torch.tensor([1.0, 2.0]), torch.tensor([10, 20])) == pytest.approx((1.0, 1.0, 0.1), rel=1e-12)


def test_one_score_far_from_many_others_is_not_taken_for_a_constant():
    scores = torch.zeros(5000)
    scores[0], lengths = 1e6, torch.arange(5000)
    assert pearson(scores, lengths) == pytest.approx(plain_pearson(scores.double(), lengths.double()), rel=1e-9)


@pytest.mark.parametrize(("scores", "lengths"), [([1.0, 1.0, 1.0], [1, 2, 3]), ([1.0, 2.0], [4, 4]), ([1.0], [3])])
def test_no_spread_is_no_correlation(scores, lengths):
    assert length_bias(torch.tensor(scores), torch.tensor(lengths)) == (0, 0, 0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("number", [1, 2, 30, 300])
def test_auroc_is_that_of_a_loop_over_all_pairs(number, scale):
    generator = torch.Generator().manual_seed(number)
    better = scale * (torch.randn(number, generator=generator) + 1)
    worse = scale * torch.randn(number, generator=generator)
    for one, other in ((better, worse), (better.round(), worse.round())):
        wins = (one[:, None] > other).double() + (one[:, None] == other).double() / 2
        assert auroc(one, other) == pytest.approx(wins.mean().item(), abs=1e-6)
        labels = [1] * number + [0] * number
        assert auroc(one, other) == pytest.approx(roc_auc_score(labels, torch.cat([one, other])), abs=1e-6)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_without_ties_the_calibration_error_is_that_of_torchmetrics(scale):
    gaps = scale * torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = binary_calibration_error(gaps.abs().sigmoid(), (gaps > 0).long(), n_bins=20)  # ten on [0.5, 1]
    assert calibration(gaps, torch.zeros_like(gaps)).ece.item() == pytest.approx(theirs.item(), rel=1e-9)
