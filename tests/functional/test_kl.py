import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.functional.kl import absolute, full_kl, k1, k2, k3, shape_scores, shaped_rewards
from tests.support.examples import few_examples


def policies():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, generator=generator, dtype=torch.float64)


def test_exact_kl_agrees_with_torch_distributions():
    p, q = policies()
    expected = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (p, q)))
    assert_close(full_kl(p, q), expected)
    assert full_kl(p, p) == 0


def test_k1_and_k3_are_unbiased():
    p, q = policies()
    log_p, log_q = p.log_softmax(0), q.log_softmax(0)
    for estimator in (k1, k3):
        assert_close((log_p.exp() * estimator(log_p, log_q)).sum(), full_kl(p, q))


@few_examples
@given(st.floats(-20, 0), st.floats(-20, 0))
def test_all_but_k1_are_never_negative(logprob, ref_logprob):
    pair = torch.tensor(logprob, dtype=torch.float64), torch.tensor(ref_logprob, dtype=torch.float64)
    for estimator in (k2, k3, absolute):
        assert estimator(*pair) >= 0


def test_a_token_forbidden_to_the_policy_costs_nothing():
    p = torch.tensor([0.0, 0.0, -torch.inf], requires_grad=True)
    kl = full_kl(p, torch.zeros(3))
    assert_close(kl, torch.tensor(1.5).log())
    assert full_kl(p, torch.tensor([0.0, 0.0, -torch.inf])) == 0


def shape(estimator=k1, **knobs):
    logprobs = torch.tensor([[-1.0, -1.0, -9.0], [-1.0, float("nan"), -9.0], [-1.0, -1.0, -1.0]])
    ref_logprobs = torch.tensor([[-2.0, -0.5, 7.0], [-3.0, 7.0, float("inf")], [-2.0, -2.0, -2.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    finished, scores = torch.tensor([True, False, False]), torch.tensor([5.0, -5.0, 5.0])
    return shaped_rewards(scores, logprobs, ref_logprobs, mask, finished, estimator=estimator, **knobs)


def test_the_score_lands_on_the_last_token_and_every_token_pays():
    out = shape(kl_coef=0.1)
    assert_close(out.kl, torch.tensor([[1.0, -0.5, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert_close(out.rewards, torch.tensor([[-0.1, 5.05, 0.0], [-5.2, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_the_clip_and_the_penalty_touch_the_score_and_never_the_kl():
    out = shape(kl_coef=10.0, score_clip=1.0, missing_eos_penalty=3.0)
    assert_close(out.rewards, torch.tensor([[-10.0, 1.0 + 5.0, 0.0], [-4.0 - 20.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_a_clip_may_be_lopsided():
    scores = torch.tensor([-9.0, 9.0])
    assert shape_scores(scores, torch.tensor([True, True]), score_clip=(-1.0, 2.0)).tolist() == [-1, 2]


@pytest.mark.parametrize("estimator", [k1, k2, k3, absolute])
def test_an_unchanged_policy_pays_nothing(estimator):
    same = torch.tensor([[-1.0, -2.0]])
    out = shaped_rewards(torch.ones(1), same, same, torch.ones(1, 2).bool(), torch.tensor([True]), kl_coef=9.0)
    assert out.rewards.tolist() == [[0, 1]]
    assert estimator(same, same).tolist() == [[0, 0]]
