import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from torch.testing import assert_close

from rlhf_lightning.functional.theory.overoptimisation import (
    best_of_n_curve,
    best_of_n_peak,
    fit_best_of_n_curve,
    fit_rl_curve,
    rl_curve,
    rl_peak,
)
from tests.support.examples import few_examples

FORMS = [(best_of_n_curve, best_of_n_peak, fit_best_of_n_curve), (rl_curve, rl_peak, fit_rl_curve)]
both_forms = pytest.mark.parametrize(("curve", "peak", "fit"), FORMS, ids=["best_of_n", "rl"])


@few_examples
@given(st.floats(1e-6, 50), st.floats(-3, 3), st.floats(-3, 3))
def test_the_curves_are_those_of_the_paper(d, alpha, beta):
    x = torch.tensor([0.0, d], dtype=torch.float64)
    assert_close(best_of_n_curve(x, alpha, beta).tolist(), [0.0, d * (alpha - beta * d)])
    assert_close(rl_curve(x, alpha, beta).tolist(), [0.0, d * (alpha - beta * math.log(d))])


@both_forms
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.12), (2.0, 0.5), (0.3, 1.0)])
def test_the_curve_is_flat_and_highest_at_its_peak(curve, peak, fit, alpha, beta):
    top = peak(alpha, beta)
    at = torch.tensor(top.distance, dtype=torch.float64, requires_grad=True)
    value = curve(at, alpha, beta)
    (slope,) = torch.autograd.grad(value, at)
    assert_close((value.item(), slope.item()), (top.gold, 0.0), atol=1e-12, rtol=1e-9)
    around = top.distance * torch.linspace(0.01, 3, 200, dtype=torch.float64)
    assert (curve(around, alpha, beta) <= top.gold + 1e-12).all()


@both_forms
@pytest.mark.parametrize("beta", [0.0, -0.5])
def test_a_score_that_is_never_spoilt_has_no_peak(curve, peak, fit, beta):
    assert peak(1.0, beta) == (math.inf, math.inf)


def test_peaks_at_the_edges_are_numbers():
    assert best_of_n_peak(-1.0, 0.5) == (0.0, 0.0)  # the first step already hurts
    assert rl_peak(1.0, 1e-6) == (math.inf, math.inf)  # beyond what a float holds
    assert rl_peak(-2000.0, 1.0) == (0.0, 0.0)


@both_forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fit_finds_the_coefficients_that_made_the_points(curve, peak, fit, dtype):
    d = torch.tensor([0.0, 0.3, 1.0, 1.7, 2.5, 4.0], dtype=dtype)
    found = fit(d, curve(d, 1.4, 0.3))
    assert_close((found.alpha, found.beta, found.r2), tuple(torch.tensor([1.4, 0.3, 1.0], dtype=dtype)))


@both_forms
def test_the_fit_is_least_squares_without_intercept(curve, peak, fit):
    generator = torch.Generator().manual_seed(0)
    d = 4 * torch.rand(30, generator=generator, dtype=torch.float64)
    gold = curve(d, 1.4, 0.3) + 0.2 * torch.randn(30, generator=generator, dtype=torch.float64)
    columns = torch.stack([curve(d, 1.0, 0.0), curve(d, 0.0, 1.0)], dim=1).numpy()
    reference = LinearRegression(fit_intercept=False).fit(columns, gold.numpy())
    found = fit(d, gold)
    assert_close([found.alpha.item(), found.beta.item()], reference.coef_.tolist())
    assert_close(found.r2.item(), reference.score(columns, gold.numpy()))
    assert 0 < found.r2 < 1


@both_forms
def test_the_scale_of_the_score_is_that_of_the_coefficients(curve, peak, fit):
    d, gold = torch.tensor([0.5, 1.0, 2.0, 3.0]), torch.tensor([0.4, 0.9, 1.0, 0.5])
    one, big = fit(d, gold), fit(d, 1e4 * gold)
    assert_close((big.alpha, big.beta, big.r2), (1e4 * one.alpha, 1e4 * one.beta, one.r2))


@both_forms
def test_a_score_that_does_not_move_is_explained_by_nothing(curve, peak, fit):
    assert fit(torch.tensor([1.0, 2.0]), torch.zeros(2)) == (0, 0, 0)


@both_forms
@pytest.mark.parametrize("distance", [[], [0.0, 1.0], [2.0, 2.0, 2.0]])
def test_too_few_points_are_refused(curve, peak, fit, distance):
    with pytest.raises(ValueError, match="two different distances"):
        fit(torch.tensor(distance), torch.ones(len(distance)))
