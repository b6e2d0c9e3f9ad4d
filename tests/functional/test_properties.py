"""What holds for every function that takes a mask, whatever the numbers: garbage outside it and padding change nothing,
parts add up to the whole, and ratios of e^+-10000 leave everything finite."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.functional import advantage, aggregate, kl, masking, ppo, ratios
from tests.support.examples import few_examples

GARBAGE = [math.nan, math.inf, -math.inf, 1e30]
log_ratios = st.one_of(st.floats(-1e4, 1e4, width=32), st.floats(-2, 2, width=32), st.sampled_from([0.0, 1e4, -1e4]))
cells = st.tuples(log_ratios, st.floats(-5, 5, width=32), st.booleans())
tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=4)
)


def shaped(x, y, mask):
    # k2: the slope of k1 is a constant, which no garbage can spoil
    scores = y[:, 0].where(mask[:, 0], 0)
    return kl.shaped_rewards(scores, x, y, mask, mask[:, 0], kl_coef=0.1, estimator=kl.k2)


# f(x, y, mask): x holds the wild numbers (log-ratios), y tame ones; both [B, T]
FUNCTIONS = {
    "masked_mean": lambda x, y, mask: masking.masked_mean(x, mask),
    "masked_moments": lambda x, y, mask: masking.masked_moments(y, mask),
    "whiten_with": lambda x, y, mask: masking.whiten_with(y, mask, *masking.masked_moments(y, mask)[1:]),
    "token_mean": lambda x, y, mask: aggregate.token_mean(x, mask),
    "seq_mean_token_mean": lambda x, y, mask: aggregate.seq_mean_token_mean(x, mask),
    "seq_mean_token_sum": lambda x, y, mask: aggregate.seq_mean_token_sum(x, mask),
    "token_sum_norm": lambda x, y, mask: aggregate.token_sum_norm(x, mask, 3),
    "gae": lambda x, y, mask: advantage.gae(x, y, mask),
    "reward_to_go": lambda x, y, mask: advantage.reward_to_go(y, mask, gamma=0.9),
    "shaped_rewards": shaped,
    "policy_loss": lambda x, y, mask: ppo.clipped_policy_loss(x, 0 * y, y, mask, dual_clip=3.0),
    "value_loss": lambda x, y, mask: ppo.clipped_value_loss(x, y, 0 * y, mask),
    "explained_variance": lambda x, y, mask: ppo.explained_variance(
        masking.masked_moments(y, mask), masking.masked_moments(y - x, mask)
    ),
    "geometric_ratio": lambda x, y, mask: ratios.geometric_ratio(x, 0 * y, mask),
    "product_ratio": lambda x, y, mask: ratios.product_ratio(x, 0 * y, mask),
    "token_weights": lambda x, y, mask: ratios.truncated_token_weights(x, 0 * y, mask),
    "sequence_weights": lambda x, y, mask: ratios.truncated_sequence_weights(x, 0 * y, mask),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def columns(table, dtype=torch.float64):
    x, y, mask = zip(*(zip(*row, strict=True) for row in table), strict=True)
    return torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype), torch.tensor(mask)


def results(name, x, y, mask):
    """All numbers that come out, and the gradient of their differentiable part by ``x``."""
    x = x.clone().requires_grad_()
    found = FUNCTIONS[name](x, y, mask)
    found = [found] if isinstance(found, torch.Tensor) else list(found)
    total = sum((number.sum() for number in found if number.requires_grad), torch.zeros((), dtype=x.dtype))
    grad = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
    return [number.detach() for number in found], torch.zeros_like(x) if grad is None else grad


@every_function
@few_examples
@given(table=tables, junk=st.sampled_from(GARBAGE))
def test_garbage_outside_the_mask_reaches_neither_value_nor_gradient(name, table, junk):
    x, y, mask = columns(table)
    clean, grad = results(name, x.where(mask, 0), y.where(mask, 0), mask)
    dirty, dirty_grad = results(name, x.where(mask, junk), y.where(mask, junk), mask)
    for want, got in zip(clean, dirty, strict=True):
        assert torch.equal(want, got)
    assert torch.equal(grad, dirty_grad)
    assert not grad[~mask].any()


@every_function
@few_examples
@given(table=tables)
def test_log_ratios_up_to_ten_thousand_leave_everything_finite(name, table):
    found, grad = results(name, *columns(table, torch.float32))
    for number in (*found, grad):
        assert number.isfinite().all()
        assert number.dtype == torch.float32


@every_function
@few_examples
@given(table=tables)
def test_padding_on_the_right_changes_nothing(name, table):
    x, y, mask = columns(table)
    wider = [torch.cat([column, column.new_ones(len(x), 2)], dim=1) for column in (x, y)]
    longer_mask = torch.cat([mask, mask.new_zeros(len(x), 2)], dim=1)
    found, grad = results(name, x, y, mask)
    padded, padded_grad = results(name, *wider, longer_mask)
    for want, got in zip(found, padded, strict=True):
        assert_close(got[:, : x.shape[1]] if got.dim() == 2 else got, want)
    assert_close(padded_grad[:, : x.shape[1]], grad)


@pytest.mark.parametrize(
    ("reduce", "count"),
    [
        (aggregate.token_mean, lambda mask: mask.sum()),
        (aggregate.seq_mean_token_mean, lambda mask: mask.any(1).sum()),
        (aggregate.seq_mean_token_sum, lambda mask: mask.any(1).sum()),
        (partial(aggregate.token_sum_norm, norm=3), len),
    ],
    ids=["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "token_sum_norm"],
)
@few_examples
@given(table=tables, size=st.integers(1, 3))
def test_policy_losses_of_parts_add_up_to_the_whole(reduce, count, table, size):
    x, y, mask = columns(table)
    whole = ppo.clipped_policy_loss(x, 0 * y, y, mask, aggregate=reduce).loss
    total = sum(
        ppo.clipped_policy_loss(*part[:1], 0 * part[1], *part[1:], aggregate=reduce, denominator=count(mask)).loss
        for part in zip(x.split(size), y.split(size), mask.split(size), strict=True)
    )
    assert_close(total, whole)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_product_over_a_long_response_stays_finite(sign):
    x = torch.full((1, 500), sign * 1e4)
    product = ratios.product_ratio(x, torch.zeros_like(x), torch.ones_like(x).bool())
    assert product.isfinite().all()
    assert (product > 0).all()


@few_examples
@given(st.lists(log_ratios, min_size=1, max_size=6))
def test_a_clamped_log_ratio_keeps_its_order_and_its_sign(values):
    x = torch.tensor(values)
    clamped = ppo.masked_log_ratio(x, torch.zeros_like(x), torch.ones_like(x).bool())
    assert torch.equal(clamped.sign(), x.sign())
    assert (clamped[x.argsort()].diff() >= 0).all()
    assert clamped.exp().isfinite().all()
