from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.functional.aggregate import seq_mean_token_mean, token_sum_norm
from rlhf_lightning.functional.masking import masked_moments
from rlhf_lightning.functional.ppo import clipped_policy_loss, clipped_value_loss, explained_variance
from tests.support.examples import few_examples

ratios = st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-100, 100), st.booleans()), min_size=1, max_size=12)


def tokens(rows):
    log_ratio, advantages, mask = (torch.tensor([column]) for column in zip(*rows, strict=True))
    return log_ratio.float().requires_grad_(), torch.zeros_like(advantages), advantages, mask


def one_token(ratio, advantage, **knobs):
    new = torch.tensor([[ratio]]).log().requires_grad_()
    one = torch.ones(1, 1)
    out = clipped_policy_loss(new, 0 * one, advantage * one, one.bool(), **knobs)
    out.loss.backward()
    return out, new.grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.0, 1.0, True), (1.0, -1.0, True)],
)
def test_gradient_vanishes_only_where_the_clip_binds(ratio, advantage, moves):
    out, grad = one_token(ratio, advantage)
    assert bool(grad.abs() > 0) is moves
    assert out.clip_fraction == float(not moves)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_descent_step_makes_good_tokens_likelier_and_bad_ones_rarer(advantage):
    _, grad = one_token(1.0, advantage)
    assert grad.item() == -advantage


def test_the_upper_range_may_be_wider():
    assert one_token(1.25, 1.0, clip_range_high=0.28)[0].clip_fraction == 0
    assert one_token(1.25, 1.0)[0].clip_fraction == 1
    assert one_token(0.75, -1.0, clip_range_high=0.28)[0].clip_fraction == 1


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "held"), [(5.0, -1.0, 3.0, 1.0), (2.0, -1.0, 2.0, 0.0), (5.0, 1.0, -1.2, 0.0)]
)
def test_dual_clip_bounds_the_loss_of_bad_tokens_only(ratio, advantage, loss, held):
    out, grad = one_token(ratio, advantage, dual_clip=3.0)
    assert_close(out.loss, torch.tensor(loss))
    assert out.dual_clip_fraction == held
    if held:
        assert grad.item() == 0


@few_examples
@given(ratios)
def test_loss_gradient_and_statistics_are_finite_for_any_ratio(rows):
    new, old, advantages, mask = tokens(rows)
    out = clipped_policy_loss(new, old, advantages, mask)
    out.loss.backward()
    assert new.grad is not None
    for number in (*out, new.grad):
        assert number.isfinite().all()
    assert not new.grad[~mask].any()
    assert not out.per_token[~mask].any()


def test_what_lies_outside_the_mask_changes_nothing():
    mask = torch.tensor([[True, True, False]])
    results = []
    for junk in (0.0, float("nan"), -800.0, float("inf")):
        new = torch.tensor([[-1.0, -2.0, junk]], requires_grad=True)
        old, advantages = torch.tensor([[-1.1, -1.5, -junk]]), torch.tensor([[1.0, -1.0, junk]])
        out = clipped_policy_loss(new, old, advantages, mask)
        out.loss.backward()
        assert new.grad is not None
        results.append(torch.cat([torch.stack([x for x in out if not x.dim()]), out.per_token[0], new.grad[0]]))
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("aggregate", [seq_mean_token_mean, partial(token_sum_norm, norm=5)])
def test_micro_batches_with_the_global_count_have_the_whole_gradient(aggregate):
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 5, generator=generator) > 0.3
    new.requires_grad_()
    whole = torch.autograd.grad(clipped_policy_loss(new, old, advantages, mask, aggregate=aggregate).loss, new)[0]
    count = mask.any(1).sum() if aggregate is seq_mean_token_mean else 4
    for rows in torch.arange(4).split([1, 3]):
        parts = new[rows], old[rows], advantages[rows], mask[rows]
        clipped_policy_loss(*parts, aggregate=aggregate, denominator=count).loss.backward()
    assert_close(new.grad, whole)


def test_nothing_counted_is_no_loss():
    x, none = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3).bool()
    out = clipped_policy_loss(x, x.detach() - 1, x.detach() + 1, none)
    assert (out.loss, out.count, out.ratio_max, out.ratio_min) == (0, 0, 1, 1)
    assert clipped_value_loss(x, x.detach(), x.detach() + 1, none).loss == 0


def test_statistics_are_detached():
    out, _ = one_token(1.1, 1.0)
    assert [name for name, number in out._asdict().items() if number.requires_grad] == ["loss"]


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "grad"),
    [
        (1.0, 0.0, 3.0, 2.8**2 / 2, 0.0),  # moved far towards the target: held
        (-1.0, 0.0, 3.0, 8.0, -4.0),  # moved away: full error
        (0.1, 0.0, 3.0, 2.9**2 / 2, -2.9),  # inside the range
    ],
)
def test_the_critic_gains_nothing_from_a_leap(value, old, target, loss, grad):
    new = torch.tensor([[value]], requires_grad=True)
    out = clipped_value_loss(new, torch.tensor([[old]]), torch.tensor([[target]]), torch.ones(1, 1).bool())
    out.loss.backward()
    assert_close(out.loss, torch.tensor(loss))
    assert_close(new.grad, torch.tensor([[grad]]))
    assert out.clip_fraction == float(grad == 0)
    assert_close(out.mse, torch.tensor((value - target) ** 2))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_explained_variance_of_a_scaled_copy_is_one_minus_the_squared_miss(scale):
    returns = torch.tensor([[1.0, 2.0, 4.0, 99.0]])
    mask = torch.tensor([[True, True, True, False]])
    moments, constant = masked_moments(returns, mask), masked_moments(torch.ones(1, 4), mask)
    missed = masked_moments(returns - (scale * returns + 7), mask)
    assert_close(explained_variance(moments, missed), torch.tensor(1 - (1 - scale) ** 2))
    assert explained_variance(constant, moments) == 0
