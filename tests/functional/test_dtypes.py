"""What goes in comes out: float32 stays float32, float64 stays float64, and float32 is only less exact."""

import pytest
import torch
from torch.testing import assert_close

from rlhf_lightning.functional import (
    advantage,
    aggregate,
    diagnostics,
    kl,
    kto,
    masking,
    ppo,
    preference,
    ratios,
    reference_free,
    reward,
)
from rlhf_lightning.functional.theory import best_of_n, optimum, overoptimisation

MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False], [True, True, False]])
FINISHED = torch.tensor([True, False, True, False])
RANKS, PROMPT = torch.tensor([1, 2, 2, 1]), torch.tensor([0, 0, 1, 1])

CALLS = {
    "whiten": lambda x, y, z: masking.whiten_with(x, MASK, *masking.masked_moments(x, MASK)[1:]),
    "moments": lambda x, y, z: masking.masked_moments(x, MASK),
    "aggregate": lambda x, y, z: aggregate.token_sum_norm(x, MASK, 3),
    "gae": lambda x, y, z: advantage.gae(x, y, MASK, bootstrap=z[:, 0]),
    "grpo": lambda x, y, z: advantage.grpo(x, y, MASK, group_size=2),
    "shaped_rewards": lambda x, y, z: kl.shaped_rewards(z[:, 0], x, y, MASK, FINISHED, kl_coef=0.1, score_clip=1.0),
    "policy": lambda x, y, z: ppo.clipped_policy_loss(x, y, z, MASK, dual_clip=3.0),
    "value": lambda x, y, z: ppo.clipped_value_loss(x, y, z, MASK),
    "explained": lambda x, y, z: ppo.explained_variance(
        masking.masked_moments(x, MASK), masking.masked_moments(y, MASK)
    ),
    "weights": lambda x, y, z: ratios.truncated_token_weights(x, y, MASK),
    "pairwise": lambda x, y, z: reward.pair_mean(reward.logistic_loss(x[:, 0], y[:, 0]), z[:, 0].exp()),
    "kwise": lambda x, y, z: reward.kwise_logistic_loss(x[:, 0], RANKS, PROMPT, margins=y[:, 0], center_coef=0.1),
    "plackett_luce": lambda x, y, z: reward.plackett_luce_loss(x[:, 0], RANKS, PROMPT, top_k=1),
    "dpo": lambda x, y, z: preference.dpo_loss(x[:, 0], y[:, 0], z[:, 0], z[:, 1], beta=0.3, weights=z[:, 0].exp()),
    "robust": lambda x, y, z: preference.robust_dpo_loss(x[:, 0], y[:, 0], z[:, 0], z[:, 1]),
    "hinge": lambda x, y, z: preference.hinge_loss(x[:, 0], y[:, 0], z[:, 0], z[:, 1]),
    "ipo": lambda x, y, z: preference.ipo_per_token_loss(x[:, 0], y[:, 0], z[:, 0], z[:, 1], RANKS, RANKS),
    "simpo": lambda x, y, z: reference_free.simpo_loss(-x[:, 0].exp(), -y[:, 0].exp(), None, None, RANKS, RANKS),
    "orpo": lambda x, y, z: reference_free.orpo_odds_ratio_loss(
        -x[:, 0].exp(), -y[:, 0].exp(), None, None, RANKS, RANKS
    ),
    "kto": lambda x, y, z: kto.kto_loss(x[:, 0], y[:, 0], FINISHED, kto.kto_reference_point(z[:, 0], z[:, 1])),
    "best_of_n": lambda x, y, z: best_of_n.best_of_n(x[:, 0], y[:, 0], 2),
    "best_of_n_law": lambda x, y, z: best_of_n.best_of_n_law(x[:, 0].exp(), y[:, 0], 8),
    "gao": lambda x, y, z: overoptimisation.fit_rl_curve(x[:, 0].exp(), y[:, 0]),
    "gao_curve": lambda x, y, z: overoptimisation.best_of_n_curve(x[:, 0].exp(), 1.0, 0.3),
    "bandit": lambda x, y, z: optimum.bandit_optimum(x, y, beta=0.5),
    "tree": lambda x, y, z: optimum.tree_optimum(x[0], y[:3], z[:3], beta=0.5),
    "tree_kl": lambda x, y, z: optimum.tree_kl(x[0], y[:3], z[0], z[1:]),
    "temperature": lambda x, y, z: diagnostics.fit_temperature(x.flatten(), y.flatten()),
}


def as_tuple(result):
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@pytest.mark.parametrize("name", CALLS)
def test_precision_of_the_input_is_kept(name):
    wide = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact, coarse = as_tuple(CALLS[name](*wide)), as_tuple(CALLS[name](*wide.float()))
    for want, got in zip(exact, coarse, strict=True):
        assert (want.dtype, got.dtype) == (torch.float64, torch.float32)
        assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
