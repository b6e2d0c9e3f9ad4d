"""Policy losses beside PPO's: where they agree with it, where they differ, and what no garbage may reach."""

import pytest
import torch
from torch.testing import assert_close

from rlhf_lightning.functional.aggregate import seq_mean_token_mean, token_mean
from rlhf_lightning.functional.policy import cispo_loss, gspo_loss, reinforce_loss
from rlhf_lightning.functional.ppo import clipped_policy_loss
from rlhf_lightning.functional.ratios import geometric_ratio

LOSSES = [clipped_policy_loss, reinforce_loss, cispo_loss, gspo_loss]


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logprobs, old, advantages = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 4, generator=generator) > 0.3
    mask[:, 0] = True
    return logprobs.requires_grad_(), old, advantages, mask


@pytest.mark.parametrize("loss", [reinforce_loss, cispo_loss], ids=lambda f: f.__name__)
def test_the_first_gradient_is_that_of_ppo(loss):
    logprobs, _, advantages, mask = example()
    old = logprobs.detach()
    (ppo,) = torch.autograd.grad(clipped_policy_loss(logprobs, old, advantages, mask).loss, logprobs)
    (other,) = torch.autograd.grad(loss(logprobs, old, advantages, mask).loss, logprobs)
    assert_close(other, ppo)


def test_the_first_gradient_of_gspo_is_that_of_ppo_with_one_advantage_per_response():
    logprobs, _, advantages, mask = example()
    old, same = logprobs.detach(), advantages[:, :1].expand_as(advantages)
    ppo = clipped_policy_loss(logprobs, old, same, mask, aggregate=seq_mean_token_mean).loss
    gspo = gspo_loss(logprobs, old, same, mask).loss
    assert_close(gspo, ppo)
    assert_close(torch.autograd.grad(gspo, logprobs), torch.autograd.grad(ppo, logprobs))


def test_gspo_clips_whole_responses_by_their_geometric_ratio():
    logprobs, old, advantages, mask = example()
    same = advantages[:, :1].expand_as(advantages)
    ratio, gain = geometric_ratio(logprobs, old, mask), advantages[:, 0]
    want = torch.maximum(-ratio * gain, -ratio.clamp(0.9, 1.2) * gain)
    out = gspo_loss(logprobs, old, same, mask, clip_range=0.1, clip_range_high=0.2)
    assert_close(out.loss, want.mean())
    cut = -ratio.clamp(0.9, 1.2) * gain > -ratio * gain
    assert_close(out.clip_fraction, (cut[:, None] & mask).sum() / mask.sum(), check_dtype=False)


def test_cispo_keeps_a_gradient_where_ppo_has_none():
    new = torch.tensor([[3.0]]).log().requires_grad_()
    one = torch.ones(1, 1)
    out = cispo_loss(new, 0 * one, one, one.bool())
    assert_close(torch.autograd.grad(out.loss, new)[0], torch.tensor([[-1.28]]))
    assert out.clip_fraction == 1


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_garbage_outside_the_mask_reaches_neither_loss_nor_gradient(loss):
    logprobs, old, advantages, mask = example()
    weights = torch.full_like(old, 0.5)
    clean = loss(logprobs, old, advantages, mask, weights=weights)
    spoilt = [torch.where(mask, x.detach(), torch.nan) for x in (logprobs, old, advantages, weights)]
    spoilt[0].requires_grad_()
    dirty = loss(*spoilt[:3], mask, weights=spoilt[3])
    for field in ("loss", "clip_fraction", "clip_fraction_low", "approx_kl", "ratio_mean", "ratio_max"):
        assert_close(getattr(dirty, field), getattr(clean, field))
    assert_close(*(torch.autograd.grad(out.loss, x)[0] for out, x in ((dirty, spoilt[0]), (clean, logprobs))))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_weights_scale_and_micro_batches_add_up(loss):
    logprobs, old, advantages, mask = example()
    whole = loss(logprobs, old, advantages, mask, aggregate=token_mean).loss
    twice = loss(logprobs, old, advantages, mask, weights=torch.full_like(old, 2.0), aggregate=token_mean).loss
    assert_close(twice, 2 * whole)
    rows = [slice(0, 1), slice(1, 3)]
    arguments = (logprobs, old, advantages, mask)
    parts = [loss(*(x[r] for x in arguments), denominator=mask.sum(), aggregate=token_mean).loss for r in rows]
    assert_close(sum(parts), whole)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_ratios_out_of_all_bounds_stay_finite(loss):
    new = torch.tensor([[1e4, -1e4]], requires_grad=True)
    out = loss(new, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert all(torch.isfinite(x).all() for x in (out.loss, out.approx_kl, out.ratio_max))
    assert torch.isfinite(torch.autograd.grad(out.loss, new)[0]).all()
