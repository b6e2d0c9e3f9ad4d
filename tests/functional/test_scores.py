import pytest
import torch
from torch.testing import assert_close

from rlhf_lightning.functional.scores import (
    log_sigmoid_centered,
    preference_as_reward,
    uncertainty_weighted,
    worst_case,
)


def test_disagreement_lowers_a_score():
    members = torch.tensor([[1.0, 1.0], [1.0, 5.0]])
    assert uncertainty_weighted(members, coef=1.0).tolist() == [1, 3 - 4]
    assert worst_case(members).tolist() == [1, 1]


@pytest.mark.parametrize("ddof", [0, 1])
def test_the_penalty_on_disagreement_is_the_variance_over_members(ddof):
    members = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = members.mean(0) - 0.5 * members.var(0, correction=ddof)
    assert_close(uncertainty_weighted(members, ddof=ddof), expected)
    assert torch.equal(uncertainty_weighted(members[:1], ddof=ddof), members[0])  # nobody to disagree with


def test_bounded_rewards_stay_bounded_and_keep_the_order():
    scores, references = torch.linspace(-50, 50, 9), torch.zeros(9, 2)
    par, lsc = preference_as_reward(scores, references), log_sigmoid_centered(scores, references)
    assert ((par >= 0) & (par <= 1)).all()
    assert (lsc <= 0).all()
    assert (par.diff() >= 0).all()
    assert (lsc.diff() >= 0).all()
