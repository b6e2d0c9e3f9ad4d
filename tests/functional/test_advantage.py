import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.functional.advantage import (
    center_by_group,
    dr_grpo,
    gae,
    group_index,
    grpo,
    leave_one_out,
    returns_only,
    reward_to_go,
    rloo,
    standardize_by_group,
)
from tests.support.examples import few_examples

steps = st.tuples(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32), st.booleans())
responses = st.lists(steps, min_size=1, max_size=8)
unit = st.floats(0, 1)


def columns(response):
    rewards, values, mask = zip(*response, strict=True)
    return torch.tensor([rewards]).double(), torch.tensor([values]).double(), torch.tensor([mask])


@few_examples
@given(responses, unit, unit, st.floats(-5, 5, width=32))
def test_gae_is_the_weighted_sum_of_later_errors(response, gamma, lam, bootstrap):
    kept = [(r, v) for r, v, counts in response if counts]
    values = [v for _, v in kept] + [bootstrap]
    deltas = [r + gamma * values[i + 1] - v for i, (r, v) in enumerate(kept)]
    expected = [
        sum((gamma * lam) ** (k - i) * delta for k, delta in enumerate(deltas) if k >= i) for i in range(len(kept))
    ]
    rewards, critic, mask = columns(response)
    advantages, returns = gae(rewards, critic, mask, gamma=gamma, lam=lam, bootstrap=torch.tensor([bootstrap]))
    assert_close(advantages[mask], torch.tensor(expected, dtype=torch.float64))
    assert_close(returns[mask], (advantages + critic)[mask])
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_garbage_outside_the_mask_does_not_leak():
    junk = float("nan")
    rewards, values = torch.tensor([[1.0, junk, 2.0, junk]]), torch.tensor([[0.5, junk, 0.5, junk]])
    mask = torch.tensor([[True, False, True, False]])
    advantages, returns = gae(rewards, values, mask, lam=1.0)
    assert advantages.tolist() == [[2.5, 0, 1.5, 0]]
    assert returns.tolist() == [[3, 0, 2, 0]]


def test_responses_without_a_single_column_have_no_advantages():
    nothing = torch.zeros(2, 0)
    assert [x.shape for x in gae(nothing, nothing, nothing.bool())] == [nothing.shape] * 2


def test_a_finished_response_has_no_value_after_its_end():
    one = torch.ones(1, 1)
    assert gae(one, one * 9, one.bool())[0].item() == 1 - 9
    assert gae(one, one * 9, one.bool(), bootstrap=torch.tensor([4.0]))[0].item() == 1 + 4 - 9


def test_reward_to_go_looks_forward_only():
    rewards, mask = torch.tensor([[8.0, 4.0, 2.0]]), torch.ones(1, 3).bool()
    assert reward_to_go(rewards, mask, gamma=0.5).tolist() == [[10.5, 5, 2]]
    assert returns_only(rewards, rewards, mask, gamma=0.5)[0].tolist() == [[10.5, 5, 2]]


@few_examples
@given(st.lists(st.tuples(st.floats(-5, 5, width=32), st.integers(0, 2)), min_size=1, max_size=8))
def test_group_baselines_are_what_a_loop_finds(rows):
    totals = torch.tensor([x for x, _ in rows]).double()
    groups = torch.tensor([g for _, g in rows])
    centered, alone = [], []
    for i, (x, g) in enumerate(rows):
        others = [y for j, (y, h) in enumerate(rows) if h == g and j != i]
        centered.append(x - sum([*others, x]) / (len(others) + 1))
        alone.append(x - sum(others) / len(others) if others else 0.0)
    assert_close(center_by_group(totals, groups), torch.tensor(centered, dtype=torch.float64))
    assert_close(leave_one_out(totals, groups), torch.tensor(alone, dtype=torch.float64))


def test_leave_one_out_is_the_group_mean_scaled_by_g_over_g_minus_one():
    totals = torch.tensor([1.0, 2.0, 6.0])
    groups = torch.zeros(3).long()
    assert_close(leave_one_out(totals, groups), center_by_group(totals, groups) * 3 / 2)


def test_a_group_without_spread_teaches_nothing():
    totals, groups = torch.tensor([2.0, 2.0, 7.0]), torch.tensor([0, 0, 1])
    for baseline in (center_by_group, leave_one_out, standardize_by_group):
        assert baseline(totals, groups).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("advantage", "expected"), [(rloo, 4.0), (dr_grpo, 2.0), (grpo, 0.5**0.5)])
def test_every_token_of_a_response_shares_its_advantage(advantage, expected):
    rewards = torch.tensor([[1.0, 0.0], [5.0, 9.0]])  # the 9 is outside the mask
    mask = torch.tensor([[True, True], [True, False]])
    advantages, returns = advantage(rewards, torch.zeros(2, 2), mask, group_size=2)
    assert_close(advantages, torch.tensor([[-expected, -expected], [expected, 0.0]]), atol=1e-4, rtol=0)
    assert returns.tolist() == [[1, 0], [5, 0]]


def test_a_batch_that_does_not_split_into_groups_is_refused():
    with pytest.raises(ValueError, match="groups of 2"):
        group_index(3, 2)
