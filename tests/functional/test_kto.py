import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kto import kto_loss, kto_reference_point
from tests.support.examples import few_examples

samples = st.lists(st.tuples(st.floats(-60, 0), st.floats(-60, 0), st.booleans()), min_size=1, max_size=6)
ZERO = torch.tensor(0.0)


def columns(rows):
    logprobs, ref_logprobs, labels = zip(*rows, strict=True)
    return (
        torch.tensor(logprobs, dtype=torch.float64),
        torch.tensor(ref_logprobs, dtype=torch.float64),
        torch.tensor(labels),
    )


@few_examples
@given(samples, st.floats(0, 9))
def test_each_answer_is_valued_from_the_reference_point(rows, z0):
    expected = []
    for logprob, ref_logprob, good in rows:
        ahead = 0.1 * (logprob - ref_logprob - z0)
        weight, value = (1.5, ahead) if good else (0.5, -ahead)
        expected.append(weight * (1 - 1 / (1 + math.exp(-value))))
    knobs = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    out = kto_loss(*columns(rows), torch.tensor(z0, dtype=torch.float64), beta=0.1, **knobs)
    assert_close(out.per_sample.tolist(), expected)
    assert_close(out.loss.item(), sum(expected) / len(expected))


def test_descent_makes_good_answers_likelier_and_bad_ones_rarer():
    logprobs = torch.tensor([-5.0, -5.0], requires_grad=True)
    out = kto_loss(logprobs, logprobs.detach(), torch.tensor([True, False]), ZERO, beta=1.0)
    (grad,) = torch.autograd.grad(out.loss, logprobs)
    assert grad.tolist() == [-0.125, 0.125]  # the slope of a sigmoid at 0 is 1/4; half of it per answer


def test_the_reference_point_is_a_mean_that_is_never_negative_and_has_no_gradient():
    logprobs, ref = torch.tensor([-3.0, -5.0, -1.0], requires_grad=True), torch.tensor([-6.0, -4.0, -2.0])
    z0 = kto_reference_point(logprobs, ref)
    assert (z0, z0.requires_grad) == (1, False)
    assert kto_reference_point(ref, logprobs) == 0
    assert kto_reference_point(torch.zeros(0), torch.zeros(0)) == 0
    moving = torch.tensor(0.5, requires_grad=True)
    assert not kto_loss(ref, ref, torch.ones(3).bool(), moving).loss.requires_grad


def test_a_higher_reference_point_asks_more_of_good_answers_and_less_of_bad_ones():
    logprobs, labels = torch.tensor([-5.0, -5.0]), torch.tensor([True, False])
    low, high = (kto_loss(logprobs, logprobs, labels, torch.tensor(z)).per_sample for z in (0.0, 3.0))
    assert high[0] > low[0]
    assert high[1] < low[1]


def test_hopeless_labels_lose_their_pull():
    logprobs = torch.tensor([0.0, -1e4, 0.0, 1e4], requires_grad=True)
    out = kto_loss(logprobs, torch.zeros(4), torch.tensor([True, True, False, False]), ZERO, beta=1.0)
    (grad,) = torch.autograd.grad(out.loss, logprobs)
    assert out.per_sample.tolist() == [0.5, 1, 0.5, 1]
    assert grad.tolist() == [-1 / 16, 0, 1 / 16, 0]


def test_micro_batches_with_the_global_count_have_the_whole_gradient():
    generator = torch.Generator().manual_seed(0)
    logprobs, ref = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    labels, z0 = torch.tensor([True, False, False, True, False]), torch.tensor(0.3)
    logprobs.requires_grad_()
    (whole,) = torch.autograd.grad(kto_loss(logprobs, ref, labels, z0).loss, logprobs)
    for rows in torch.arange(5).split([3, 2]):
        kto_loss(logprobs[rows], ref[rows], labels[rows], z0, denominator=torch.tensor(5)).loss.backward()
    assert_close(logprobs.grad, whole)


def test_rewards_are_reported_by_kind_and_detached():
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    out = kto_loss(logprobs, torch.full((3,), -2.0), torch.tensor([True, True, True]), ZERO, beta=0.5)
    assert out.rewards.tolist() == [0.5, 0, -0.5]
    assert (out.desirable_reward, out.undesirable_reward) == (0, 0)
    assert [name for name, number in out._asdict().items() if number.requires_grad] == ["loss"]
    mixed = kto_loss(logprobs, torch.full((3,), -2.0), torch.tensor([True, False, False]), ZERO, beta=0.5)
    assert (mixed.desirable_reward, mixed.undesirable_reward) == (0.5, -0.25)


@pytest.mark.parametrize("knobs", [{"beta": 0.0}, {"desirable_weight": -1.0}, {"undesirable_weight": -1.0}])
def test_invalid_knobs_are_refused(knobs):
    with pytest.raises(ConfigError):
        kto_loss(torch.zeros(1), torch.zeros(1), torch.ones(1).bool(), ZERO, **knobs)
