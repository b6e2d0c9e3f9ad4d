import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.functional.reward import (
    kwise_logistic_loss,
    kwise_pair_mean_loss,
    kwise_pairs,
    kwise_prompt_losses,
    logistic_loss,
    pair_mean,
    pair_statistics,
    pairs_per_prompt,
    plackett_luce_loss,
)
from tests.support.examples import few_examples

LOSSES = [kwise_logistic_loss, kwise_pair_mean_loss, plackett_luce_loss]
answers = st.lists(st.tuples(st.floats(-5, 5, width=32), st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=8)


def columns(rows):
    scores, ranks, prompt = zip(*rows, strict=True)
    return torch.tensor(scores).double(), torch.tensor(ranks), torch.tensor(prompt)


def a_ranking(num_prompts=3, answers_each=4):
    scores = torch.randn(num_prompts * answers_each, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranks = torch.tensor([1, 2, 3, 4]).repeat(num_prompts)
    return scores, ranks, torch.arange(num_prompts).repeat_interleave(answers_each)


@few_examples
@given(answers)
def test_pairs_and_losses_are_what_a_loop_over_prompts_finds(rows):
    scores, ranks, prompt = columns(rows)
    means, counts = [], []
    for p in range(max(q for _, _, q in rows) + 1):
        own = [(s, r) for s, r, q in rows if q == p]
        losses = [math.log1p(math.exp(t - s)) for (s, r), (t, u) in itertools.product(own, own) if r < u]
        counts.append(len(losses))
        means.append(sum(losses) / max(len(losses), 1))
    assert pairs_per_prompt(ranks, prompt).tolist() == counts
    assert_close(kwise_prompt_losses(scores, ranks, prompt), torch.tensor(means, dtype=torch.float64))
    compared = max(sum(c > 0 for c in counts), 1)
    assert_close(kwise_logistic_loss(scores, ranks, prompt).item(), sum(means) / compared)
    total = sum(m * c for m, c in zip(means, counts, strict=True))
    assert_close(kwise_pair_mean_loss(scores, ranks, prompt).item(), total / max(sum(counts), 1))


@few_examples
@given(answers)
def test_pairs_never_cross_prompts_nor_join_ties(rows):
    _, ranks, prompt = columns(rows)
    better, worse, owner = kwise_pairs(ranks, prompt)
    assert (ranks[better] < ranks[worse]).all()
    assert (prompt[better] == prompt[worse]).all()
    assert (prompt[better] == owner).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_descent_raises_the_best_and_lowers_the_worst(loss):
    scores, ranks, prompt = a_ranking()
    scores.requires_grad_()
    (grad,) = torch.autograd.grad(loss(scores, ranks, prompt), scores)
    assert (grad[ranks == 1] < 0).all()
    assert (grad[ranks == 4] > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_level_of_the_scores_is_free(loss):
    scores, ranks, prompt = a_ranking()
    assert_close(loss(scores + torch.tensor([5.0, -3.0, 0.5])[prompt], ranks, prompt), loss(scores, ranks, prompt))


@pytest.mark.parametrize("loss", [kwise_logistic_loss, plackett_luce_loss])
def test_micro_batches_of_whole_prompts_sum_to_the_batch(loss):
    scores, ranks, prompt = a_ranking()
    first = loss(scores[:4], ranks[:4], prompt[:4], denominator=3)
    rest = loss(scores[4:], ranks[4:], prompt[4:] - 1, denominator=torch.tensor(3.0))
    assert_close(first + rest, loss(scores, ranks, prompt))


@pytest.mark.parametrize("weights", [None, [0.5, 1.5, 0.25, 1.75]])
def test_pairs_of_micro_batches_sum_to_the_batch(weights):
    losses = torch.rand(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = None if weights is None else torch.tensor(weights).double()  # they average 1
    parts = [
        pair_mean(losses[rows], None if weights is None else weights[rows], torch.tensor(4))
        for rows in torch.arange(4).split([1, 3])
    ]
    assert_close(sum(parts), pair_mean(losses, weights))


def test_pairs_of_no_weight_and_no_pairs_are_no_loss():
    one, none = torch.ones(2), torch.zeros(0)
    assert pair_mean(one, 0 * one) == 0
    assert pair_mean(logistic_loss(none)) == 0 and pair_statistics(none) == (0, 0, 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_two_answers_with_a_margin_are_a_pairwise_comparison(loss):
    chosen, rejected, margin = torch.tensor([0.3, -1.0]), torch.tensor([0.9, -2.0]), torch.tensor([0.5, 0.0])
    scores, margins = torch.stack([rejected, chosen], 1).flatten(), margin.repeat_interleave(2)
    ranks, prompt = torch.tensor([2, 1, 2, 1]), torch.tensor([0, 0, 1, 1])
    expected = logistic_loss(chosen - rejected, margin).mean()
    assert_close(loss(scores, ranks, prompt, margins=margins), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_but_ties_is_no_loss(loss):
    scores = torch.tensor([1.0, 2.0], requires_grad=True)
    value = loss(scores, torch.tensor([1, 1]), torch.tensor([0, 0]))
    value.backward()
    assert value == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_plackett_luce_is_a_distribution_over_rankings():
    scores = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    prompt = torch.zeros(3).long()
    orders = [torch.tensor(ranks) for ranks in itertools.permutations((1, 2, 3))]
    total = sum(plackett_luce_loss(scores, ranks, prompt).neg().exp() for ranks in orders)
    assert_close(total.item(), 1.0)


def test_pick_the_best_is_cross_entropy_over_the_answers():
    scores = torch.tensor([0.3, -1.0, 2.0])
    got = plackett_luce_loss(scores, torch.tensor([3, 1, 2]), torch.zeros(3).long(), top_k=1)
    assert_close(got, torch.nn.functional.cross_entropy(scores, torch.tensor(1)))


def test_extreme_scores_stay_finite():
    chosen = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = logistic_loss(chosen + chosen.detach()).mean()
    loss.backward()
    assert_close(loss, torch.tensor(1e4))
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [-0.5, 0]


def test_a_constant_reward_model_is_not_accurate():
    assert pair_statistics(torch.zeros(3)) == (0, 1, 0)


def test_label_smoothing_pulls_a_certain_model_back():
    sure = torch.tensor([5.0], requires_grad=True)
    (plain,) = torch.autograd.grad(logistic_loss(2 * sure), sure)
    (smooth,) = torch.autograd.grad(logistic_loss(2 * sure, label_smoothing=0.1), sure)
    assert plain < 0 < smooth


def test_centring_pulls_both_scores_to_zero():
    ranking = torch.tensor([3.0, 3.0], requires_grad=True)
    loss = kwise_logistic_loss(ranking, torch.tensor([1, 2]), torch.tensor([0, 0]), center_coef=1.0)
    assert_close(loss, torch.tensor(math.log(2) + 36))
    assert (torch.autograd.grad(loss, ranking)[0] > 0).all()
