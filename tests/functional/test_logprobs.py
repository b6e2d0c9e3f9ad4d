import pytest
import torch
from torch.testing import assert_close

from rlhf_lightning.functional.logprobs import entropy, gather_logprobs, token_logprobs


@pytest.fixture
def logits():
    return torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))


def test_they_agree_with_torch_categorical_shifted_by_one(logits):
    ids = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(1))
    expected = torch.distributions.Categorical(logits=logits[:, :-1] / 0.7).log_prob(ids[:, 1:])
    assert_close(token_logprobs(logits, ids, temperature=0.7), expected)
    assert_close(entropy(logits, temperature=0.7), torch.distributions.Categorical(logits=logits / 0.7).entropy())


def test_the_greedy_token_has_the_largest_log_probability(logits):
    best = gather_logprobs(logits, logits.argmax(-1))
    for token in range(7):
        assert (best >= gather_logprobs(logits, torch.full((2, 5), token))).all()


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_precision_is_float32_at_least(logits, given, computed):
    coarse = logits.to(given)
    ids = logits.argmax(-1)
    got = gather_logprobs(coarse, ids)
    assert got.dtype == entropy(coarse).dtype == computed
    assert_close(got, gather_logprobs(coarse.double(), ids), check_dtype=False)


def test_logits_are_left_as_they_were(logits):
    before = logits.clone()
    gather_logprobs(logits, logits.argmax(-1), temperature=0.5)
    entropy(logits, temperature=0.5)
    assert torch.equal(logits, before)


def test_forbidden_tokens_add_nothing_to_the_entropy_or_its_gradient():
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]], requires_grad=True)
    value = entropy(logits)
    assert_close(value, torch.tensor([[2.0]]).log())
    value.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_temperature_of_zero_is_refused(logits):
    with pytest.raises(ValueError, match="above 0"):
        entropy(logits, temperature=0.0)
