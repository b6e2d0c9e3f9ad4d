import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.reference_free import log_odds, orpo_odds_ratio_loss, simpo_loss
from tests.support.examples import few_examples

FOUR, TWO = torch.tensor([4]), torch.tensor([2])


def simpo(chosen, rejected, **knobs):
    return simpo_loss(torch.tensor([chosen]), torch.tensor([rejected]), None, None, FOUR, TWO, **knobs)


def test_simpo_compares_log_probability_per_token():
    out = simpo(-4.0, -3.0, beta=2.0, gamma=0.0)
    assert_close((out.chosen_rewards.item(), out.rejected_rewards.item()), (-2.0, -3.0))
    assert (out.accuracy, out.margin) == (1, 1)
    assert_close(out.loss.item(), math.log(1 + math.exp(-1)))


def test_gamma_is_a_handicap_of_the_chosen_answer():
    assert_close(simpo(-4.0, -3.0, beta=2.0, gamma=1.0).loss.item(), math.log(2))  # wins by exactly gamma
    assert simpo(-4.0, -3.0, beta=2.0, gamma=1.5).loss > simpo(-4.0, -3.0, beta=2.0, gamma=1.0).loss
    with pytest.raises(ConfigError, match="gamma=-1"):
        simpo(-4.0, -3.0, gamma=-1.0)


@few_examples
@given(st.floats(1e-6, 1 - 1e-6))
def test_log_odds_are_those_of_the_probability(p):
    assert_close(
        log_odds(torch.tensor(math.log(p), dtype=torch.float64)).item(),
        math.log(p) - math.log1p(-p),
        atol=1e-9,
        rtol=1e-9,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_are_finite_and_rise_for_every_log_probability(dtype):
    extremes = torch.tensor([-1e4, -100, -1, -math.log(2), -0.6, -1e-3, -1e-6], dtype=dtype, requires_grad=True)
    odds = log_odds(extremes)
    (grad,) = torch.autograd.grad(odds.sum(), extremes)
    assert odds.isfinite().all()
    assert grad.isfinite().all()
    assert (odds.diff() > 0).all()
    assert_close(grad, 1 / (-torch.expm1(extremes.detach())))  # d/dx of x - log(1 - e^x)
    assert log_odds(torch.zeros((), dtype=dtype)).isfinite()


def test_orpo_depends_on_the_mean_over_tokens_alone():
    long = orpo_odds_ratio_loss(torch.tensor([-4.0]), torch.tensor([-3.0]), None, None, FOUR, TWO)
    short = orpo_odds_ratio_loss(torch.tensor([-2.0]), torch.tensor([-6.0]), None, None, TWO, FOUR)
    assert_close(long, short)
    chosen, rejected = (math.exp(x) / (1 - math.exp(x)) for x in (-1.0, -1.5))
    assert_close(long.loss.item(), -math.log(chosen / (chosen + rejected)))
    assert_close(long.margin.item(), math.log(chosen / rejected))
