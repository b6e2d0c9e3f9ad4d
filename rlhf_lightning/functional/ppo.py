"""The clipped losses of proximal policy optimisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.functional.aggregate import token_mean
from rlhf_lightning.functional.masking import Moments, masked_mean, masked_moments
from rlhf_lightning.rules.ranges import require

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-this before ``exp``: e^20 is far outside any clip range and finite in float32."""


class PolicyLoss(NamedTuple):
    """The loss and, over the tokens that count here, what to watch. Everything but the loss is detached."""

    loss: Tensor  # [], differentiable
    clip_fraction: Tensor  # [], share of tokens where the clipped branch is strictly larger
    clip_fraction_low: Tensor  # [], the part of it whose ratio is below 1
    dual_clip_fraction: Tensor  # [], share of tokens held by the dual clip
    approx_kl: Tensor  # [], nats per token, KL(old || new), estimator k3
    approx_kl_k1: Tensor  # [], the same by k1 (any sign)
    approx_kl_k2: Tensor  # [], the same by k2
    ratio_mean: Tensor  # []
    ratio_var: Tensor  # [], ddof 0
    ratio_max: Tensor  # []
    ratio_min: Tensor  # []
    per_token: Tensor  # [B, T], loss of each token before aggregation, 0 outside the mask
    count: Tensor  # type: ignore[assignment]  # [], tokens that counted: the weight among micro-batches


class ValueLoss(NamedTuple):
    """The loss and what to watch; everything but the loss is detached."""

    loss: Tensor  # [], differentiable
    clip_fraction: Tensor  # [], share of tokens where the clipped error is strictly larger
    mse: Tensor  # [], mean squared error without clipping
    count: Tensor  # type: ignore[assignment]  # [], tokens that counted


def masked_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``log pi_new - log pi_old``, 0 outside the mask, clamped to +-20; safe to exponentiate. ``[B, T]``.

    A token beyond the clamp gets no gradient; its ratio is wrong by orders of magnitude anyway.

    >>> masked_log_ratio(torch.tensor([-1.0, 0.0]), torch.tensor([-3.0, -800.0]), torch.tensor([True, False]))
    tensor([2., 0.])
    """
    zero = torch.zeros_like(logprobs)
    # both operands first: neither NaN nor a difference of infinities outside the mask survives
    difference = torch.where(mask, logprobs, zero) - torch.where(mask, old_logprobs, zero)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float = 0.2,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
    aggregate: Callable[..., Tensor] = token_mean,
) -> PolicyLoss:
    """Clipped surrogate objective, negated so that lower is better.

        loss_t = w_t max(-r_t A_t, -clip(r_t, 1 - e, 1 + e_high) A_t),  r_t = new_t / old_t

    Args:
        logprobs: log-probability of each token under the policy in training, ``[B, T]``.
        old_logprobs: the same under the policy that sampled the tokens, ``[B, T]``, no grad.
        advantages: how much better than expected each token was, ``[B, T]``, no grad.
        mask: tokens that count, bool ``[B, T]``.
        clip_range: e, the half-width of the trust region on the ratio.
        clip_range_high: e_high if it differs from e (DAPO: 0.28).
        dual_clip: c > 1; where A < 0 a token's loss is at most ``-c A``.
        weights: constants that multiply each token's loss, broadcast to ``[B, T]`` (rollout correction).
        denominator: count of the whole batch, see ``aggregate``.
        aggregate: one of `functional.aggregate`, called ``aggregate(per_token, mask, denominator=denominator)``.

    Sources: Schulman et al. 2017, arXiv:1707.06347, eq. 7; asymmetric range: Yu et al. 2025, arXiv:2503.14476; dual
    clip: Ye et al. 2020, arXiv:1912.09729; KL estimates: Schulman 2020.

    >>> new = torch.tensor([[1.5, 1.0]]).log()
    >>> ones = torch.ones(1, 2)
    >>> clipped_policy_loss(new, torch.zeros(1, 2), ones, ones.bool()).loss
    tensor(-1.1000)
    """
    require("clip_range", clip_range, above=0)
    require("clip_range_high", clip_range_high, above=0)
    require("dual_clip", dual_clip, above=1)
    log_ratio = masked_log_ratio(logprobs, old_logprobs, mask)
    ratio = log_ratio.exp()
    gain = torch.where(mask, advantages, 0)
    high = clip_range if clip_range_high is None else clip_range_high
    plain, clipped = -ratio * gain, -ratio.clamp(1 - clip_range, 1 + high) * gain
    per_token = torch.maximum(plain, clipped)
    held = torch.zeros_like(mask)
    if dual_clip is not None:
        held = (gain < 0) & (per_token > -dual_clip * gain)
        per_token = torch.where(held, -dual_clip * gain, per_token)
    if weights is not None:
        per_token = per_token * torch.where(mask, weights, 0)
    loss = aggregate(per_token, mask, denominator=denominator)
    return with_statistics(loss, per_token, log_ratio, mask, clipped=clipped > plain, held=held)


@torch.no_grad()
def with_statistics(
    loss: Tensor,
    per_token: Tensor,
    log_ratio: Tensor,
    mask: Tensor,
    *,
    clipped: Tensor | None = None,
    held: Tensor | None = None,
) -> PolicyLoss:
    """A loss with what to watch beside it; for policy losses that you write.

    Args:
        loss: ``[]``, keeps its gradient.
        per_token: before aggregation, ``[B, T]``.
        log_ratio: of each *token*, see `masked_log_ratio`, ``[B, T]``.
        mask: bool ``[B, T]``.
        clipped: tokens whose gain was cut, bool ``[B, T]``; None means none.
        held: tokens held by the dual clip, bool ``[B, T]``; None means none.

    >>> zeros, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    >>> with_statistics(zeros.sum(), zeros, torch.tensor([[2.0, 0.5]]).log(), mask).ratio_mean
    tensor(1.2500)
    """
    ratio = log_ratio.exp()
    k1, k2, k3 = -log_ratio, log_ratio.square() / 2, torch.expm1(log_ratio) - log_ratio
    count, ratio_mean, ratio_var = masked_moments(ratio, mask)
    largest, smallest = _extremes(ratio, mask)
    nowhere = torch.zeros_like(mask)
    clipped = nowhere if clipped is None else clipped
    return PolicyLoss(
        loss=loss,
        clip_fraction=masked_mean(clipped.to(ratio.dtype), mask),
        clip_fraction_low=masked_mean((clipped & (ratio < 1)).to(ratio.dtype), mask),
        dual_clip_fraction=masked_mean((nowhere if held is None else held).to(ratio.dtype), mask),
        approx_kl=masked_mean(k3, mask),
        approx_kl_k1=masked_mean(k1, mask),
        approx_kl_k2=masked_mean(k2, mask),
        ratio_mean=ratio_mean,
        ratio_var=ratio_var,
        ratio_max=largest,
        ratio_min=smallest,
        per_token=per_token.detach(),
        count=count,
    )


def _extremes(ratio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and smallest entry that counts, 1 and 1 if none does."""
    if not mask.any():
        return ratio.new_ones(()), ratio.new_ones(())
    return torch.where(mask, ratio, -torch.inf).amax(), torch.where(mask, ratio, torch.inf).amin()


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_range: float | None = 0.2,
    denominator: float | Tensor | None = None,
    aggregate: Callable[..., Tensor] = token_mean,
) -> ValueLoss:
    """Half the squared error of the critic, where a step away from the old value is never rewarded beyond the range.

        loss_t = 1/2 max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2)

    Args:
        values: of the critic in training, ``[B, T]``.
        old_values: of the critic at rollout, ``[B, T]``, no grad.
        returns: targets, ``[B, T]``, no grad.
        mask: bool ``[B, T]``.
        clip_range: e, in units of the value; None does not clip.
        denominator: count of the whole batch, see ``aggregate``.
        aggregate: one of `functional.aggregate`.

    Source: openai/lm-human-preferences, ``train_policy.py``.

    >>> one = torch.ones(1, 1)
    >>> clipped_value_loss(one, 0 * one, 3 * one, one.bool()).loss  # (0.2 - 3)^2 / 2
    tensor(3.9200)
    """
    zero = torch.zeros_like(values)
    new, old, target = (torch.where(mask, x, zero) for x in (values, old_values, returns))
    error = (new - target).square()
    clipped = error if clip_range is None else (old + (new - old).clamp(-clip_range, clip_range) - target).square()
    loss = aggregate(0.5 * torch.maximum(error, clipped), mask, denominator=denominator)
    with torch.no_grad():
        clip_fraction = masked_mean((clipped > error).to(error.dtype), mask)
        mse = masked_mean(error, mask)
    return ValueLoss(loss, clip_fraction, mse, mask.sum().to(values.dtype))


def explained_variance(returns: Moments, residuals: Moments) -> Tensor:
    """``1 - var(R - V) / var(R)``, ``[]``; 1 is perfect, 0 no better than a constant. 0 when the returns do not vary.

    Args:
        returns: moments of the returns R over the tokens that count, on all ranks.
        residuals: those of ``R - V``, the returns minus the values.

    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> explained_variance(*(masked_moments(x, mask) for x in (torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 1.0]]))))
    tensor(0.7500)
    """
    return torch.where(returns.var > 0, 1 - residuals.var / torch.where(returns.var > 0, returns.var, 1), 0)
