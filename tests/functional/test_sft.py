import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from rlhf_lightning.functional.aggregate import token_mean
from rlhf_lightning.functional.sft import token_nll


def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 5, generator=generator)
    ids = torch.randint(0, 5, (3, 6), generator=generator)
    mask = torch.rand(3, 6, generator=generator) > 0.4
    mask[2] = False
    return logits.requires_grad_(), ids, mask


def test_the_loss_is_cross_entropy_of_the_next_token():
    logits, ids, mask = example()
    out = token_nll(logits, ids, mask)
    labels = torch.where(mask, ids, -100)[:, 1:]
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert_close(token_mean(out.nll, out.mask), expected)
    got, want = (torch.autograd.grad(loss, logits)[0] for loss in (token_mean(out.nll, out.mask), expected))
    assert_close(got, want)


def test_tokens_outside_the_mask_are_neither_right_nor_wrong():
    logits, ids, mask = example()
    out = token_nll(logits, ids, mask)
    outside = ~mask[:, 1:]
    for column in (out.nll, out.correct, out.entropy):
        assert not column[outside].any()
    guesses = logits[:, :-1].argmax(-1)
    assert out.correct.tolist() == ((guesses == ids[:, 1:]) & mask[:, 1:]).tolist()


def test_the_entropy_is_for_watching_only():
    assert not token_nll(*example()).entropy.requires_grad
