import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from rlhf_lightning.functional.linear_logprobs import score_logits


@pytest.fixture
def logits():
    return torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))


def test_they_agree_with_torch_categorical(logits):
    ids = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(1))
    out = score_logits(logits, ids, temperature=0.7, entropy=True)
    law = torch.distributions.Categorical(logits=logits / 0.7)
    assert_close(out.logprobs, law.log_prob(ids))
    assert_close(out.entropy, law.entropy())


def test_the_loss_is_cross_entropy_of_the_tokens_and_so_is_its_gradient(logits):
    ids = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    out = score_logits(logits, ids, correct=True, entropy=True)
    expected = cross_entropy(logits.flatten(0, 1), ids.flatten())
    assert_close(-out.logprobs.mean(), expected)
    got, want = (torch.autograd.grad(loss, logits)[0] for loss in (-out.logprobs.mean(), expected))
    assert_close(got, want)
    assert torch.equal(out.correct, logits.argmax(-1) == ids) and not out.entropy.requires_grad


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_precision_is_float32_at_least(logits, given, computed):
    coarse, ids = logits.to(given), logits.argmax(-1)
    got = score_logits(coarse, ids, entropy=True)
    assert got.logprobs.dtype == got.entropy.dtype == computed
    assert_close(got.logprobs, score_logits(coarse.double(), ids).logprobs, check_dtype=False)


def test_logits_are_left_as_they_were(logits):
    before = logits.clone()
    score_logits(logits, logits.argmax(-1), temperature=0.5, entropy=True)
    assert torch.equal(logits, before)


def test_forbidden_tokens_add_nothing_to_the_entropy_or_its_gradient():
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]], requires_grad=True)
    value = score_logits(logits, torch.zeros(1, 1).long(), entropy=True, entropy_grad=True).entropy
    assert_close(value, torch.tensor([[2.0]]).log())
    value.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_temperature_of_zero_is_refused(logits):
    with pytest.raises(ValueError, match="above 0"):
        score_logits(logits, logits.argmax(-1), temperature=0.0)
