import torch
from torch.testing import assert_close

from rlhf_lightning.functional.ppo import clipped_policy_loss
from rlhf_lightning.functional.ratios import (
    cispo_loss,
    geometric_ratio,
    masked_sequence_weights,
    masked_token_weights,
    product_ratio,
    reinforce_loss,
    truncated_sequence_weights,
    truncated_token_weights,
)

MASK = torch.tensor([[True, True, False], [False, False, False]])
NEW = torch.tensor([[8.0, 0.5, 1.0], [1.0, 1.0, 1.0]]).log()
OLD = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).log()  # -inf outside the mask


def test_sequence_ratios_use_the_counted_tokens():
    assert_close(product_ratio(NEW, OLD, MASK), torch.tensor([4.0, 1.0]))
    assert_close(geometric_ratio(NEW, OLD, MASK), torch.tensor([2.0, 1.0]))


def test_truncation_caps_and_masking_drops():
    assert_close(truncated_token_weights(NEW, OLD, MASK), torch.tensor([[2.0, 0.5, 0.0], [0.0, 0.0, 0.0]]))
    assert_close(masked_token_weights(NEW, OLD, MASK, low=0.4), torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]))
    assert_close(truncated_sequence_weights(NEW, OLD, MASK), torch.tensor([[2.0], [1.0]]))
    assert_close(masked_sequence_weights(NEW, OLD, MASK), torch.tensor([[0.0], [1.0]]))
    assert_close(masked_sequence_weights(NEW, OLD, MASK, high=5.0), torch.tensor([[4.0], [1.0]]))


def test_reinforce_and_cispo_start_with_the_gradient_of_ppo():
    generator = torch.Generator().manual_seed(0)
    logprobs, advantages = torch.randn(2, 3, 4, generator=generator)
    mask = torch.rand(3, 4, generator=generator) > 0.3
    logprobs.requires_grad_()
    old = logprobs.detach()
    losses = (
        clipped_policy_loss(logprobs, old, advantages, mask).loss,
        reinforce_loss(logprobs, advantages, mask),
        cispo_loss(logprobs, old, advantages, mask),
    )
    ppo, *others = (torch.autograd.grad(loss, logprobs)[0] for loss in losses)
    for other in others:
        assert_close(other, ppo)


def test_cispo_keeps_a_gradient_where_ppo_has_none():
    new = torch.tensor([[3.0]]).log().requires_grad_()
    one = torch.ones(1, 1)
    (grad,) = torch.autograd.grad(cispo_loss(new, 0 * one, one, one.bool()), new)
    assert_close(grad, torch.tensor([[-1.28]]))
