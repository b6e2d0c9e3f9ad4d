import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kl import full_kl, k1, k2, k3
from rlhf_lightning.functional.theory.optimum import bandit_optimum, tree_kl, tree_optimum, tree_token_loss


def tables(seed=0, dtype=torch.float64):
    """First- and second-token logits of a policy and of a reference, and rewards of the nine answers."""
    generator = torch.Generator().manual_seed(seed)
    first, ref_first = torch.randn(2, 3, generator=generator, dtype=dtype)
    second, ref_second, rewards = torch.randn(3, 3, 3, generator=generator, dtype=dtype)
    return first, second, ref_first, ref_second, rewards


def answers(first, second):
    """Log-probability of each of the nine answers, one by one."""
    pairs = itertools.product(range(3), range(3))
    return torch.stack([first.log_softmax(0)[a] + second[a].log_softmax(0)[b] for a, b in pairs])


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_no_other_distribution_has_a_higher_objective(beta):
    _, _, ref, _, table = tables()
    rewards = table[0]
    best = bandit_optimum(ref, rewards, beta=beta)
    assert_close(best.objective, best.soft_value)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        other = (best.logprobs + 0.1 * torch.randn(3, generator=generator, dtype=torch.float64)).log_softmax(0)
        assert (other.exp() * rewards).sum() - beta * full_kl(other, ref) < best.objective


def test_the_kl_penalty_decides_between_the_reference_and_the_best_answer():
    ref, rewards = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 1.0, 2.0])
    assert_close(bandit_optimum(ref, rewards, beta=1e6).logprobs, ref.log_softmax(0), atol=1e-5, rtol=0)
    greedy = bandit_optimum(ref, rewards, beta=1e-3)
    assert_close(greedy.logprobs.exp(), torch.tensor([1.0, 0.0, 0.0]))
    assert_close(greedy.kl, -ref.log_softmax(0)[0])


def test_a_constant_in_the_reward_is_a_constant_in_the_value():
    ref, rewards = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 1.0, 2.0])
    plain, raised = (bandit_optimum(ref, rewards + c, beta=0.5) for c in (0.0, 7.0))
    assert_close(raised.logprobs, plain.logprobs)
    assert_close((raised.objective, raised.soft_value), (plain.objective + 7, plain.soft_value + 7))


def test_an_answer_that_the_reference_never_gives_stays_out():
    best = bandit_optimum(torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([0.0, 0.0, 1e4]), beta=0.1)
    assert_close(best.logprobs.exp(), torch.tensor([0.5, 0.5, 0.0]))
    assert (best.kl, best.objective) == (0, 0)


def test_the_tree_is_the_bandit_over_whole_answers():
    _, _, ref_first, ref_second, rewards = tables()
    tree = tree_optimum(ref_first, ref_second, rewards, beta=0.5)
    whole = bandit_optimum(answers(ref_first, ref_second), rewards.flatten(), beta=0.5)
    assert_close((tree.first.unsqueeze(1) + tree.second).flatten(), whole.logprobs)
    got, expected = (tree.expected_reward, tree.kl, tree.objective), whole[1:4]
    assert_close(got, tuple(expected))
    after = [bandit_optimum(ref_second[a], rewards[a], beta=0.5).objective for a in range(3)]
    assert_close(tree.soft_values, torch.stack(after))


def test_second_tokens_may_be_another_number_than_first_ones():
    tree = tree_optimum(torch.zeros(2), torch.zeros(2, 5), torch.ones(2, 5), beta=1.0)
    assert_close((tree.first.exp(), tree.second.exp()), (torch.full((2,), 0.5), torch.full((2, 5), 0.2)))


def test_the_kl_of_the_tree_is_that_of_its_answers_in_value_and_gradient():
    first, second, ref_first, ref_second, _ = tables()
    first.requires_grad_(), second.requires_grad_()
    got = tree_kl(first, second, ref_first, ref_second)
    expected = full_kl(answers(first, second), answers(ref_first, ref_second))
    assert_close(got, expected)
    assert_close(torch.autograd.grad(got, (first, second)), torch.autograd.grad(expected, (first, second)))


def test_a_policy_at_its_optimum_is_at_no_distance_from_it_and_gains_nothing_by_moving():
    _, _, ref_first, ref_second, rewards = tables()
    best = tree_optimum(ref_first, ref_second, rewards, beta=0.5)
    assert_close(tree_kl(best.first, best.second, best.first, best.second).item(), 0.0, atol=1e-12, rtol=0)
    first, second = best.first.clone().requires_grad_(), best.second.clone().requires_grad_()
    expected = ((first.log_softmax(0).unsqueeze(1) + second.log_softmax(1)).exp() * rewards).sum()
    objective = expected - 0.5 * tree_kl(first, second, ref_first, ref_second)
    assert_close(objective, best.objective)
    for grad in torch.autograd.grad(objective, (first, second)):
        assert_close(grad, torch.zeros_like(grad), atol=1e-12, rtol=0)


def test_a_per_token_loss_has_the_exact_gradient_at_the_last_token_only():
    first, second, ref_first, ref_second, _ = tables()
    first.requires_grad_(), second.requires_grad_()
    exact = torch.autograd.grad(tree_kl(first, second, ref_first, ref_second), (first, second))
    loss = tree_token_loss(first, second, ref_first, ref_second, estimator=k2)
    myopic = torch.autograd.grad(loss, (first, second))
    assert_close(myopic[1], exact[1])
    assert_close(myopic[0], torch.autograd.grad(full_kl(first, ref_first), first)[0])
    assert (myopic[0] - exact[0]).abs().max() > 0.01


def test_the_expected_loss_is_the_sum_over_answers_of_their_chance_times_their_loss():
    first, second, ref_first, ref_second, _ = tables()
    for estimator in (k1, k2, k3):
        total = 0.0
        for a, b in itertools.product(range(3), range(3)):
            own = estimator(first.log_softmax(0)[a], ref_first.log_softmax(0)[a])
            later = estimator(second[a].log_softmax(0)[b], ref_second[a].log_softmax(0)[b])
            total += math.exp(answers(first, second)[3 * a + b]) * float(own + later)
        assert_close(tree_token_loss(first, second, ref_first, ref_second, estimator=estimator).item(), total)
    same = tree_token_loss(first, second, ref_first, ref_second, estimator=k1)
    assert_close(same, tree_kl(first, second, ref_first, ref_second))


def test_the_gradient_of_k1_as_a_loss_vanishes():
    first, second, ref_first, ref_second, _ = tables()
    first.requires_grad_(), second.requires_grad_()
    loss = tree_token_loss(first, second, ref_first, ref_second, estimator=k1)
    for grad in torch.autograd.grad(loss, (first, second)):
        assert_close(grad, torch.zeros_like(grad), atol=1e-12, rtol=0)


def test_tokens_that_nobody_may_write_leave_the_gradient_finite():
    first = torch.tensor([0.0, 1.0, -torch.inf], requires_grad=True)
    second = torch.zeros(3, 2, requires_grad=True)
    loss = tree_token_loss(first, second, torch.tensor([1.0, 0.0, -torch.inf]), torch.zeros(3, 2))
    for number in (loss, *torch.autograd.grad(loss, (first, second))):
        assert number.isfinite().all()


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_an_optimum_without_a_kl_penalty_is_refused(beta):
    with pytest.raises(ConfigError, match="above 0"):
        bandit_optimum(torch.zeros(2), torch.zeros(2), beta=beta)
    with pytest.raises(ConfigError, match="above 0"):
        tree_optimum(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2, 2), beta=beta)
