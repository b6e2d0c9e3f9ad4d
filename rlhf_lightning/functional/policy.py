"""Policy losses beside the clipped one of PPO, all called alike.

Every policy loss is ``f(logprobs, old_logprobs, advantages, mask, *, weights, denominator, aggregate) -> PolicyLoss``
with the arguments of `rlhf_lightning.functional.ppo.clipped_policy_loss`, and is 0 where a token does not count.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lightning.functional.aggregate import seq_mean_token_mean, token_mean
from rlhf_lightning.functional.ppo import PolicyLoss, masked_log_ratio, with_statistics
from rlhf_lightning.rules.ranges import require


def reinforce_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
    aggregate: Callable[..., Tensor] = token_mean,
) -> PolicyLoss:
    """``-A_t log pi_t``: the plain policy gradient, right only while the policy is the one that sampled.

    Its gradient is that of the clipped loss where the ratio is 1; ``old_logprobs`` are only watched. Source: Williams
    1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning".

    >>> half = torch.tensor([[0.5]]).log()
    >>> reinforce_loss(half, half, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)).loss  # log 2
    tensor(0.6931)
    """
    per_token = _weighted(-_counted(advantages, mask) * _counted(logprobs, mask), weights, mask)
    loss = aggregate(per_token, mask, denominator=denominator)
    return with_statistics(loss, per_token, masked_log_ratio(logprobs, old_logprobs, mask).detach(), mask)


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float = 1.0,
    clip_range_high: float = 0.28,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
    aggregate: Callable[..., Tensor] = token_mean,
) -> PolicyLoss:
    """Policy gradient with a clipped, detached ratio as weight: no token loses its gradient.

        loss_t = -stop_grad(clip(r_t, 1 - e, 1 + e_high)) A_t log pi_t

    Source: MiniMax 2025, arXiv:2506.13585, eq. 4; the lower bound is off (``e = 1``) as there.

    >>> half = torch.tensor([[0.5]]).log()
    >>> cispo_loss(half, half, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)).loss  # log 2
    tensor(0.6931)
    """
    require("clip_range", clip_range, above=0)
    require("clip_range_high", clip_range_high, above=0)
    log_ratio = masked_log_ratio(logprobs, old_logprobs, mask).detach()
    ratio = log_ratio.exp()
    inside = ratio.clamp(1 - clip_range, 1 + clip_range_high)
    per_token = _weighted(-inside * _counted(advantages, mask) * _counted(logprobs, mask), weights, mask)
    loss = aggregate(per_token, mask, denominator=denominator)
    return with_statistics(loss, per_token, log_ratio, mask, clipped=inside != ratio)


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float = 3e-4,
    clip_range_high: float | None = 4e-4,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
    aggregate: Callable[..., Tensor] = seq_mean_token_mean,
) -> PolicyLoss:
    """The clipped loss with one ratio per response, the geometric mean of its tokens' ratios.

        s_i = exp(mean_t log r_it),   loss_it = max(-s_i A_it, -clip(s_i, 1 - e, 1 + e_high) A_it)

    A mean of many log-ratios hardly moves, hence the tiny range. Averaged over tokens, then over responses (the
    default), this is the objective of the paper. ``clip_fraction`` counts tokens of clipped responses; the KL
    estimates and ratios to watch stay those of single tokens.

    Source: Zheng et al. 2025, arXiv:2507.18071, eq. 5 to 7 and section 5.1 for the range.

    >>> new, ones = torch.tensor([[4.0, 1.0]]).log(), torch.ones(1, 2)
    >>> gspo_loss(new, torch.zeros(1, 2), -ones, ones.bool()).loss  # sqrt(4 * 1)
    tensor(2.)
    """
    require("clip_range", clip_range, above=0)
    require("clip_range_high", clip_range_high, above=0)
    log_ratio = masked_log_ratio(logprobs, old_logprobs, mask)
    ratio = (log_ratio.sum(1) / mask.sum(1).clamp(min=1)).exp().unsqueeze(1)
    gain = _counted(advantages, mask)
    high = clip_range if clip_range_high is None else clip_range_high
    plain, clipped = -ratio * gain, -ratio.clamp(1 - clip_range, 1 + high) * gain
    per_token = _weighted(torch.maximum(plain, clipped), weights, mask)
    loss = aggregate(per_token, mask, denominator=denominator)
    return with_statistics(loss, per_token, log_ratio.detach(), mask, clipped=clipped > plain)


def _counted(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` with 0 where a token does not count, whatever stood there."""
    return torch.where(mask, x, torch.zeros_like(x))


def _weighted(per_token: Tensor, weights: Tensor | None, mask: Tensor) -> Tensor:
    return per_token if weights is None else per_token * torch.where(mask, weights, 0)
