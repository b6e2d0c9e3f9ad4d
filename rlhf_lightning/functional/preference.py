"""Losses that teach a policy from comparisons, without a reward model.

All are called alike, with summed log-probabilities of the ``N`` answers of a batch, each ``[N]`` in nats::

    f(chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths, weights=..., denominator=...)

    chosen, rejected:                  of the better and the worse answer under the policy in training.
    ref_chosen, ref_rejected:          the same under the reference, no grad; `reference_free` takes None too.
    chosen_lengths, rejected_lengths:  tokens that were summed; needed where they are in the formula.
    beta:                              how dear it is to leave the reference: the smaller, the farther the policy goes.
    weights, denominator:              see `reward.pair_mean`; with the pairs of the whole batch, micro-batches add up.

A policy that equals the reference has log-ratios of 0, whatever the answers. Below, ``h`` is the log-ratio of the
chosen minus that of the rejected answer: ``h = (chosen - ref_chosen) - (rejected - ref_rejected)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlhf_lightning.functional.reward import logistic_loss, pair_mean, pair_statistics
from rlhf_lightning.rules.ranges import require


class PreferenceLoss(NamedTuple):
    """Everything but the loss is detached."""

    loss: Tensor  # [], differentiable
    per_pair: Tensor  # [N], before weights
    chosen_rewards: Tensor  # [N], what the loss takes for the reward of the answer: beta * log-ratio unless it says so
    rejected_rewards: Tensor  # [N]
    accuracy: Tensor  # [], share of pairs with the chosen reward strictly above the rejected one
    tie_rate: Tensor  # [], share of pairs with equal rewards: 1 at the start, where policy and reference agree
    margin: Tensor  # [], mean of chosen - rejected reward


def implicit_rewards(logprobs: Tensor, ref_logprobs: Tensor, *, beta: float) -> Tensor:
    """``beta (log pi - log pi_ref)`` of whole answers, ``[N]``: the reward that the policy would be optimal for.

    Source: Rafailov et al. 2023, arXiv:2305.18290, section 4; a constant per prompt is left out.

    >>> implicit_rewards(torch.tensor([-4.0]), torch.tensor([-6.0]), beta=0.5)
    tensor([1.])
    """
    return beta * (logprobs - ref_logprobs)


def preference_loss(
    per_pair: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> PreferenceLoss:
    """What every loss here returns, from the loss of each pair and the rewards it compared, each ``[N]``.

    >>> three, one = torch.tensor([3.0]), torch.tensor([1.0])
    >>> preference_loss(one, three, one).margin
    tensor(2.)
    """
    return PreferenceLoss(
        pair_mean(per_pair, weights, denominator),
        per_pair.detach(),
        chosen_rewards.detach(),
        rejected_rewards.detach(),
        *pair_statistics(chosen_rewards - rejected_rewards),
    )


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> PreferenceLoss:
    """Direct preference optimisation: `reward.logistic_loss` of the implicit rewards.

        loss = -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h)

    With ``label_smoothing`` s, the share of labels that are the wrong way round, it is conservative DPO.

    Sources: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; smoothing: Mitchell 2023, "A note on DPO with noisy
    preferences and relationship to IPO".

    Raises:
        ConfigError: beta is not above 0, or label_smoothing not in [0, 0.5).

    >>> even = torch.tensor([-5.0])
    >>> dpo_loss(even, even, even, even).loss  # log 2
    tensor(0.6931)
    """
    require("beta", beta, above=0)
    require("label_smoothing", label_smoothing, at_least=0, below=0.5, why="at a half a label says nothing")
    better = implicit_rewards(chosen, ref_chosen, beta=beta)
    worse = implicit_rewards(rejected, ref_rejected, beta=beta)
    per_pair = logistic_loss(better - worse, label_smoothing=label_smoothing)
    return preference_loss(per_pair, better, worse, weights, denominator)


def robust_dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> PreferenceLoss:
    """DPO that is unbiased when a share ``s`` of the labels is the wrong way round; it may be negative.

        loss = (-(1 - s) log sigmoid(beta h) + s log sigmoid(-beta h)) / (1 - 2 s)

    Its mean over labels flipped with chance ``label_smoothing`` is `dpo_loss` of the true labels.

    Source: Chowdhury et al. 2024, arXiv:2403.00409.

    Raises:
        ConfigError: beta is not above 0, or label_smoothing not in [0, 0.5).

    >>> even = torch.tensor([-5.0])
    >>> robust_dpo_loss(even, even, even, even).loss  # log 2 at any s
    tensor(0.6931)
    """
    require("beta", beta, above=0)
    require("label_smoothing", label_smoothing, at_least=0, below=0.5, why="at a half a label says nothing")
    better = implicit_rewards(chosen, ref_chosen, beta=beta)
    worse = implicit_rewards(rejected, ref_rejected, beta=beta)
    gap = better - worse
    per_pair = ((1 - label_smoothing) * softplus(-gap) - label_smoothing * softplus(gap)) / (1 - 2 * label_smoothing)
    return preference_loss(per_pair, better, worse, weights, denominator)


def hinge_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: float = 0.1,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> PreferenceLoss:
    """``max(0, 1 - beta h)``: pairs that are right by a reward of 1 are left alone.

    Sources: Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425; with a reference: Liu et al. 2023 (RSO), arXiv:2309.06657.

    Raises:
        ConfigError: beta is not above 0.

    >>> even = torch.tensor([-5.0])
    >>> hinge_loss(even, even, even, even).loss
    tensor(1.)
    """
    require("beta", beta, above=0)
    better = implicit_rewards(chosen, ref_chosen, beta=beta)
    worse = implicit_rewards(rejected, ref_rejected, beta=beta)
    return preference_loss(torch.relu(1 - (better - worse)), better, worse, weights, denominator)


def ipo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: float = 0.1,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> PreferenceLoss:
    """``(h - 1 / (2 beta))^2``, nats squared: a target for the log-ratios, where DPO would push them apart forever.

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17.

    Raises:
        ConfigError: beta is not above 0.

    >>> even = torch.tensor([-5.0])
    >>> ipo_loss(even, even, even, even, beta=0.25).loss
    tensor(4.)
    """
    require("beta", beta, above=0)
    better, worse = chosen - ref_chosen, rejected - ref_rejected
    per_pair = (better - worse - 1 / (2 * beta)).square()
    return preference_loss(per_pair, beta * better, beta * worse, weights, denominator)


def ipo_per_token_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> PreferenceLoss:
    """`ipo_loss` with log-ratios per token, so that long answers do not carry larger targets.

        loss = ((chosen - ref_chosen) / chosen_length - (rejected - ref_rejected) / rejected_length - 1 / (2 beta))^2

    The rewards reported are still of whole answers.

    Source: Azar et al. 2023, arXiv:2310.12036; the mean over tokens: huggingface/trl, ``DPOTrainer``, loss type ipo.

    Raises:
        ConfigError: beta is not above 0.

    >>> even, length = torch.tensor([-5.0]), torch.tensor([2])
    >>> ipo_per_token_loss(even + 4, even, even, even, length, length, beta=0.25).loss  # (4 / 2 - 2)^2
    tensor(0.)
    """
    require("beta", beta, above=0)
    better, worse = chosen - ref_chosen, rejected - ref_rejected
    gap = better / chosen_lengths.clamp(min=1) - worse / rejected_lengths.clamp(min=1)
    return preference_loss((gap - 1 / (2 * beta)).square(), beta * better, beta * worse, weights, denominator)
