"""Learning from single answers that were called good or bad, without pairs (KTO)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.functional.masking import divide_by_count, masked_mean
from rlhf_lightning.functional.preference import implicit_rewards
from rlhf_lightning.rules.ranges import require


class KTOLoss(NamedTuple):
    """Everything but the loss is detached."""

    loss: Tensor  # [], differentiable
    per_sample: Tensor  # [N], weights included
    rewards: Tensor  # [N], beta * log-ratio
    desirable_reward: Tensor  # [], mean over the good answers, 0 if there is none
    undesirable_reward: Tensor  # [], mean over the bad answers, 0 if there is none


def kto_reference_point(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``z0 = max(0, mean (log pi - log pi_ref))``, nats, ``[]``, detached: what gains and losses are measured from.

    It estimates KL(policy || reference) from answers that do *not* belong to their prompts (the answers of the batch
    moved on by one prompt). A mean over a micro-batch is another number than a mean over the batch: give it all ``N``
    answers of the batch, of all ranks.

    Args:
        logprobs: summed over the tokens of each mismatched answer under the policy, ``[N]``.
        ref_logprobs: the same under the reference, ``[N]``.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.

    >>> kto_reference_point(torch.tensor([-3.0, -5.0]), torch.tensor([-6.0, -4.0]))  # (3 - 1) / 2
    tensor(1.)
    """
    gap = (logprobs - ref_logprobs).detach()
    return divide_by_count(gap.sum(), len(gap)).clamp(min=0)


def kto_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    denominator: float | Tensor | None = None,
) -> KTOLoss:
    """Raise the value of good answers above a reference point and lower that of bad ones below it.

        loss_i = w_good (1 - sigmoid(beta (d_i - z0)))  or  w_bad (1 - sigmoid(beta (z0 - d_i))),  d = log pi - log ref

    An answer that is far on the right or on the wrong side has little gradient: one hopeless label cannot dominate.

    Args:
        logprobs: summed over the tokens of each answer under the policy, ``[N]``.
        ref_logprobs: the same under the reference, ``[N]``, no grad.
        desirable: bool ``[N]``, True where the answer was called good.
        reference_point: z0, ``[]``, see `kto_reference_point`.
        beta: how dear it is to leave the reference.
        desirable_weight: w_good; where one kind is rarer, let ``w_good n_good`` be about ``w_bad n_bad``.
        undesirable_weight: w_bad.
        denominator: answers of the whole batch; None counts the ones here.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.

    Raises:
        ConfigError: beta is not above 0, or a weight is negative.

    >>> same, good = torch.tensor([-5.0, -5.0]), torch.tensor([True, False])
    >>> kto_loss(same, same, good, torch.tensor(0.0), undesirable_weight=3.0).per_sample
    tensor([0.5000, 1.5000])
    """
    require("beta", beta, above=0)
    require("desirable_weight", desirable_weight, at_least=0)
    require("undesirable_weight", undesirable_weight, at_least=0)
    rewards = implicit_rewards(logprobs, ref_logprobs, beta=beta)
    gain = rewards - beta * reference_point.detach()
    # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where sigmoid(x) rounds to 1
    per_sample = torch.where(desirable, desirable_weight * (-gain).sigmoid(), undesirable_weight * gain.sigmoid())
    rewards = rewards.detach()
    return KTOLoss(
        loss=divide_by_count(per_sample.sum(), len(per_sample) if denominator is None else denominator),
        per_sample=per_sample.detach(),
        rewards=rewards,
        desirable_reward=masked_mean(rewards, desirable),
        undesirable_reward=masked_mean(rewards, ~desirable),
    )
