import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.preference import (
    dpo_loss,
    hinge_loss,
    implicit_rewards,
    ipo_loss,
    ipo_per_token_loss,
    robust_dpo_loss,
)
from rlhf_lightning.functional.reference_free import orpo_odds_ratio_loss, simpo_loss
from rlhf_lightning.functional.reward import logistic_loss, pair_statistics
from tests.support.examples import few_examples

LOSSES = {
    "dpo": dpo_loss,
    "cdpo": partial(dpo_loss, label_smoothing=0.1),
    "robust": partial(robust_dpo_loss, label_smoothing=0.2),
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "ipo_per_token": ipo_per_token_loss,
    "simpo": simpo_loss,
    "orpo": orpo_odds_ratio_loss,
}
WITH_REFERENCE = ["dpo", "cdpo", "robust", "hinge", "ipo", "ipo_per_token"]
every_loss = pytest.mark.parametrize("name", LOSSES)
numbers = st.tuples(*[st.floats(-60, -0.5)] * 4, st.integers(1, 20), st.integers(1, 20))


def answers(count=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logprobs = -20 * torch.rand(4, count, generator=generator, dtype=dtype) - 0.5
    return *logprobs, *torch.randint(1, 9, (2, count), generator=generator)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def plainly(name, c, r, ref_c, ref_r, len_c, len_r):
    """The loss of one pair as the papers write it."""
    h = (c - ref_c) - (r - ref_r)
    good, bad = -math.log(sigmoid(0.1 * h)), -math.log(sigmoid(-0.1 * h))
    odds_c, odds_r = (p / (1 - p) for p in (math.exp(c / len_c), math.exp(r / len_r)))
    return {
        "dpo": good,
        "cdpo": 0.9 * good + 0.1 * bad,
        "robust": (0.8 * good - 0.2 * bad) / 0.6,
        "hinge": max(0.0, 1 - 0.1 * h),
        "ipo": (h - 5) ** 2,
        "ipo_per_token": ((c - ref_c) / len_c - (r - ref_r) / len_r - 5) ** 2,
        "simpo": -math.log(sigmoid(2 * c / len_c - 2 * r / len_r - 1)),
        "orpo": -math.log(sigmoid(math.log(odds_c / odds_r))),
    }[name]


@every_loss
@few_examples
@given(rows=st.lists(numbers, min_size=1, max_size=5))
def test_each_loss_is_the_formula_of_its_paper(name, rows):
    out = LOSSES[name](*(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)))
    expected = torch.tensor([plainly(name, *row) for row in rows], dtype=torch.float64)
    assert_close(out.per_pair, expected, rtol=1e-6, atol=1e-9)
    assert_close(out.loss, expected.mean(), rtol=1e-6, atol=1e-9)


@every_loss
def test_descent_makes_the_chosen_answer_likelier_and_the_rejected_one_rarer(name):
    chosen, rejected = torch.tensor([-9.0], requires_grad=True), torch.tensor([-8.0], requires_grad=True)
    even, length = torch.tensor([-8.5]), torch.tensor([4])
    loss = LOSSES[name](chosen, rejected, even, even, length, length).loss
    grads = torch.autograd.grad(loss, (chosen, rejected))
    assert grads[0] < 0 < grads[1]


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_only_ratios_to_the_reference_matter(name):
    chosen, rejected, ref_chosen, ref_rejected, *lengths = answers()
    shift = torch.linspace(-9, 9, 5).double()
    moved = chosen + shift, rejected - shift, ref_chosen + shift, ref_rejected - shift
    assert_close(LOSSES[name](*moved, *lengths), LOSSES[name](chosen, rejected, ref_chosen, ref_rejected, *lengths))


@pytest.mark.parametrize("name", ["dpo", "cdpo", "robust", "hinge", "ipo"])
def test_what_raises_both_answers_alike_changes_nothing(name):
    chosen, rejected, *others = answers()
    assert_close(LOSSES[name](chosen + 3, rejected + 3, *others).loss, LOSSES[name](chosen, rejected, *others).loss)


@every_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_micro_batches_with_the_global_count_have_the_whole_gradient(name, weighted):
    chosen, rejected, *others = answers()
    weights = torch.tensor([0.5, 1.5, 1.0, 0.2, 1.8]).double() if weighted else None  # they average 1
    chosen.requires_grad_()
    whole = LOSSES[name](chosen, rejected, *others, weights=weights)
    (expected,) = torch.autograd.grad(whole.loss, chosen)
    total = torch.zeros(()).double()
    for rows in torch.arange(5).split([2, 2, 1]):
        columns = (x[rows] for x in (chosen, rejected, *others))
        part = LOSSES[name](*columns, weights=weights if weights is None else weights[rows], denominator=5).loss
        part.backward()
        total += part.detach()
    assert_close(total, whole.loss.detach())
    assert_close(chosen.grad, expected)


@every_loss
def test_weights_count_pairs_several_times(name):
    columns = answers(2)
    doubled = [x[[0, 0, 0, 1]] for x in columns]
    weights = torch.tensor([30.0, 10.0]).double()
    assert_close(LOSSES[name](*columns, weights=weights).loss, LOSSES[name](*doubled).loss)


@every_loss
@pytest.mark.parametrize("ratio", [1e4, -1e4])
def test_extreme_ratios_leave_loss_and_gradient_finite(name, ratio):
    length = torch.tensor([3])
    chosen = torch.tensor([min(ratio, -1e-3)], requires_grad=True)
    rejected = torch.tensor([min(-ratio, -1e-3)], requires_grad=True)
    out = LOSSES[name](chosen, rejected, rejected.detach(), chosen.detach(), length, length)
    for number in (*out, *torch.autograd.grad(out.loss, (chosen, rejected))):
        assert number.isfinite().all()


@every_loss
def test_no_pairs_and_empty_answers_give_no_nan(name):
    none = torch.zeros(0, requires_grad=True)
    empty = LOSSES[name](none, none, none, none, none.detach(), none.detach())
    empty.loss.backward()
    assert (empty.loss, empty.accuracy, empty.tie_rate, empty.margin) == (0, 0, 0, 0)
    chosen, zero = torch.zeros(1, requires_grad=True), torch.zeros(1)
    out = LOSSES[name](chosen, zero, zero, zero, torch.tensor([0]), torch.tensor([0]))
    out.loss.backward()
    assert out.loss.isfinite()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()
    assert (out.accuracy, out.tie_rate) == (0, 1)


@every_loss
def test_everything_but_the_loss_is_detached(name):
    chosen, *others = answers()
    out = LOSSES[name](chosen.requires_grad_(), *others)
    assert [field for field, number in out._asdict().items() if number.requires_grad] == ["loss"]


def test_dpo_is_a_comparison_of_implicit_rewards():
    chosen, rejected, ref_chosen, ref_rejected, *_ = answers()
    better = implicit_rewards(chosen, ref_chosen, beta=0.3)
    worse = implicit_rewards(rejected, ref_rejected, beta=0.3)
    out = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.3, label_smoothing=0.2)
    expected = logistic_loss(better - worse, label_smoothing=0.2).mean()
    assert_close((out.loss, out.accuracy, out.tie_rate, out.margin), (expected, *pair_statistics(better - worse)))
    assert_close((out.chosen_rewards, out.rejected_rewards), (better, worse))


def test_the_mean_of_the_robust_loss_over_flipped_labels_is_the_loss_of_the_true_ones():
    chosen, rejected, ref_chosen, ref_rejected, *_ = answers()
    right = robust_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, label_smoothing=0.3).per_pair
    flipped = robust_dpo_loss(rejected, chosen, ref_rejected, ref_chosen, label_smoothing=0.3).per_pair
    assert_close(0.7 * right + 0.3 * flipped, dpo_loss(chosen, rejected, ref_chosen, ref_rejected).per_pair)


def test_conservative_dpo_is_content_where_its_belief_equals_the_share_of_right_labels():
    gap = torch.tensor([math.log(9)], dtype=torch.float64, requires_grad=True)  # sigmoid is 0.9
    zero = torch.zeros(1).double()
    (grad,) = torch.autograd.grad(dpo_loss(gap, zero, zero, zero, beta=1.0, label_smoothing=0.1).loss, gap)
    assert_close(grad.item(), 0.0, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("gap", "gradient"), [(12.0, 0.0), (8.0, -0.1), (-50.0, -0.1)])
def test_the_hinge_lets_go_of_pairs_that_are_right_by_enough(gap, gradient):
    chosen, zero = torch.tensor([gap], requires_grad=True), torch.zeros(1)
    (grad,) = torch.autograd.grad(hinge_loss(chosen, zero, zero, zero, beta=0.1).loss, chosen)
    assert_close(grad, torch.tensor([gradient]))


@pytest.mark.parametrize(("gap", "sign"), [(4.9, -1), (5.0, 0), (5.1, 1)])
def test_ipo_pulls_back_what_has_gone_too_far(gap, sign):
    chosen, zero = torch.tensor([gap], requires_grad=True), torch.zeros(1)
    (grad,) = torch.autograd.grad(ipo_loss(chosen, zero, zero, zero, beta=0.1).loss, chosen)
    assert grad.sign() == sign


def test_twice_the_tokens_at_twice_the_ratio_is_the_same_to_ipo_per_token():
    columns = answers()
    longer = [2 * x for x in columns]
    assert_close(ipo_per_token_loss(*longer).per_pair, ipo_per_token_loss(*columns).per_pair)
    assert_close(ipo_per_token_loss(*columns[:4], *[torch.ones(5)] * 2).loss, ipo_loss(*columns[:4]).loss)


@pytest.mark.parametrize("loss", [dpo_loss, robust_dpo_loss, hinge_loss, ipo_loss, ipo_per_token_loss, simpo_loss])
@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan")])
def test_a_beta_that_is_not_positive_is_refused(loss, beta):
    with pytest.raises(ConfigError, match="above 0"):
        loss(*answers(), beta=beta)


@pytest.mark.parametrize("loss", [dpo_loss, robust_dpo_loss])
@pytest.mark.parametrize("label_smoothing", [0.5, 1.0, -0.1])
def test_labels_that_say_nothing_are_refused(loss, label_smoothing):
    with pytest.raises(ConfigError, match=r"below 0\.5"):
        loss(*answers(), label_smoothing=label_smoothing)
