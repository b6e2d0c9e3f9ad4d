"""Preference losses that need no reference policy. They are called like those in `functional.preference`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlhf_lightning.functional.preference import PreferenceLoss, preference_loss
from rlhf_lightning.rules.ranges import require


def simpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor | None,
    ref_rejected: Tensor | None,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> PreferenceLoss:
    """Without a reference: log-probability per token as the reward, and a margin to win by.

        loss = -log sigmoid(beta (chosen / chosen_length - rejected / rejected_length) - gamma)

    The rewards are ``beta`` times the log-probability per token.

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.

    Raises:
        ConfigError: beta is not above 0, or gamma is negative.

    >>> four, two = torch.tensor([4]), torch.tensor([2])
    >>> simpo_loss(torch.tensor([-4.0]), torch.tensor([-2.0]), None, None, four, two, gamma=0.0).loss  # log 2
    tensor(0.6931)
    """
    require("beta", beta, above=0)
    require("gamma", gamma, at_least=0, why="it is the margin by which the chosen answer should win")
    better = beta * chosen / chosen_lengths.clamp(min=1)
    worse = beta * rejected / rejected_lengths.clamp(min=1)
    return preference_loss(softplus(gamma - (better - worse)), better, worse, weights, denominator)


def log_odds(logprobs: Tensor) -> Tensor:
    """``log p - log(1 - p)`` from log-probabilities of any shape; p is kept a rounding step below 1.

    >>> log_odds(torch.tensor([0.5, 0.75]).log())  # 1 : 1 and 3 : 1
    tensor([0.0000, 1.0986])
    """
    log_p = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    near_one = log_p > -math.log(2)
    # each branch only sees where it is exact; the other one gets a harmless stand-in
    high, low = torch.where(near_one, log_p, -1.0), torch.where(near_one, -1.0, log_p)
    return log_p - torch.where(near_one, (-torch.expm1(high)).log(), torch.log1p(-low.exp()))


def orpo_odds_ratio_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor | None,
    ref_rejected: Tensor | None,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> PreferenceLoss:
    """The part of ORPO that compares; add it, times a small factor, to the NLL of the chosen answers.

        loss = -log sigmoid(log odds(chosen / chosen_length) - log odds(rejected / rejected_length))

    The rewards are the log odds of the geometric mean probability per token.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 7.

    >>> one = torch.tensor([1])
    >>> chosen, rejected = torch.tensor([0.75]).log(), torch.tensor([0.5]).log()
    >>> orpo_odds_ratio_loss(chosen, rejected, None, None, one, one).loss  # -log(3 / 4)
    tensor(0.2877)
    """
    better = log_odds(chosen / chosen_lengths.clamp(min=1))
    worse = log_odds(rejected / rejected_lengths.clamp(min=1))
    return preference_loss(softplus(worse - better), better, worse, weights, denominator)
