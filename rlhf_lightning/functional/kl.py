"""Divergence between a policy and its reference, and the rewards that charge for it.

The estimators look at sampled tokens only; ``d = logprobs - ref_logprobs`` with tokens drawn from the policy. All are
elementwise, nats per token; sum them over a response for nats per response. None of them is clamped,
but k3 goes on as a straight line where d is below -20, before its exponential overflows.

As a *penalty in the reward*, k1 gives the exact gradient of the sequence KL. As a *loss* k1 has zero expected gradient,
k3 follows the forward KL, and every per-token loss ignores that early tokens decide which later KL is paid. Sources:
Schulman 2020, "Approximating KL divergence"; arXiv:2510.01555.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.functional.logprobs import log_softmax
from rlhf_lightning.functional.sequences import last_index

STRAIGHT_FROM = 20.0


class ShapedRewards(NamedTuple):
    """What each token earned, and what of it was the penalty for leaving the reference."""

    rewards: Tensor  # float [B, T], score on the last token that counts minus kl_coef * kl; 0 outside the mask
    kl: Tensor  # float [B, T], nats per token, 0 outside the mask


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``d``: unbiased, any sign. Shapes as given.

    >>> k1(torch.tensor(-1.0), torch.tensor(-3.0))
    tensor(2.)
    """
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``d^2 / 2``: biased, low variance, never negative.

    >>> k2(torch.tensor(-1.0), torch.tensor(-3.0))
    tensor(2.)
    """
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``exp(-d) - 1 + d``: unbiased, never negative.

    >>> k3(torch.tensor(0.5).log(), torch.tensor(1.0).log())  # 2 - 1 - log 2
    tensor(0.3069)
    """
    gap = ref_logprobs - logprobs
    curve = torch.expm1(gap.clamp(max=STRAIGHT_FROM))
    line = math.exp(STRAIGHT_FROM) * (gap - STRAIGHT_FROM) + math.expm1(STRAIGHT_FROM)
    return torch.where(gap > STRAIGHT_FROM, line, curve) - gap


def absolute(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``|d|``: not an estimate of the KL, but a bounded-slope penalty seen in older recipes.

    >>> absolute(torch.tensor(-3.0), torch.tensor(-1.0))
    tensor(2.)
    """
    return (logprobs - ref_logprobs).abs()


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "abs": absolute}
"""The estimators by the name configs give them."""


def estimate(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, estimator: Callable[[Tensor, Tensor], Tensor] = k1
) -> Tensor:
    """KL of each token ``[B, T]``, nats, 0 outside the mask, where garbage reaches neither value nor gradient.

    >>> estimate(torch.tensor([[-1.0, 0.0]]), torch.tensor([[-3.0, torch.nan]]), torch.tensor([[True, False]]))
    tensor([[2., 0.]])
    """
    zero = torch.zeros_like(logprobs)
    kl = estimator(torch.where(mask, logprobs, zero), torch.where(mask, ref_logprobs, zero))
    return torch.where(mask, kl, zero)


def full_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact ``sum_v p (log p - log q)`` over the vocabulary, ``[...]`` from logits ``[..., V]``, nats.

    Tokens that the policy forbids (``-inf``) add 0.

    >>> full_kl(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0]).log())  # log 2 - (log 3) / 2 ... = 0.1438
    tensor(0.1438)
    """
    log_p, log_q = log_softmax(logits), log_softmax(ref_logits)
    return (log_p.exp() * torch.where(log_p.isneginf(), 0, log_p - log_q)).sum(-1)


def totals(scores: Tensor, mask: Tensor) -> Tensor:
    """One score per response, ``[B]``: scores ``[B]`` as they are, those of tokens ``[B, T]`` summed.

    >>> totals(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([3.])
    """
    return scores if scores.dim() == 1 else torch.where(mask, scores, 0).sum(1)


def shape_scores(
    scores: Tensor,
    finished: Tensor,
    *,
    score_clip: float | tuple[float, float] | None = None,
    missing_eos_penalty: float = 0.0,
) -> Tensor:
    """Scores ``[B]`` clipped first, then less the penalty where the response was truncated.

    Args:
        scores: of the scorer, ``[B]``.
        finished: bool ``[B]``, True where the response ended by itself.
        score_clip: ``(low, high)``, or one number for ``(-c, c)``.
        missing_eos_penalty: subtracted from the score of every response that is not finished.

    >>> shape_scores(torch.tensor([9.0, 9.0]), torch.tensor([True, False]), score_clip=5.0, missing_eos_penalty=1.0)
    tensor([5., 4.])
    """
    if score_clip is not None:
        low, high = (-score_clip, score_clip) if isinstance(score_clip, int | float) else score_clip
        scores = scores.clamp(low, high)
    return torch.where(finished, scores, scores - missing_eos_penalty)


def shaped_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    finished: Tensor,
    *,
    kl_coef: float,
    score_clip: float | tuple[float, float] | None = None,
    missing_eos_penalty: float = 0.0,
    estimator: Callable[[Tensor, Tensor], Tensor] = k1,
) -> ShapedRewards:
    """Rewards per token: minus the KL penalty everywhere, the score on the last token that counts.

        r_t = -kl_coef * kl_t + [t is the last token that counts] * score

    The score is clipped, the KL never is. A row without any token that counts earns nothing.

    Args:
        scores: ``[B]`` for the last token that counts, or ``[B, T]`` for each token (process rewards).
        logprobs: of the sampled tokens under the policy that sampled them, ``[B, T]``.
        ref_logprobs: the same under the reference, ``[B, T]``.
        mask: bool ``[B, T]``.
        finished: bool ``[B]``, see `shape_scores`, as are ``score_clip`` and ``missing_eos_penalty``.
        kl_coef: coefficient of the KL penalty, score per nat.
        estimator: `k1`, `k2`, `k3`, `absolute` or any elementwise function of the two log-probabilities.

    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2; openai/lm-human-preferences, ``compute_rewards``.

    >>> new, ref = torch.tensor([[-1.0, -1.0, 0.0]]), torch.tensor([[-2.0, -1.0, 0.0]])
    >>> mask = torch.tensor([[True, True, False]])
    >>> shaped_rewards(torch.tensor([5.0]), new, ref, mask, torch.tensor([True]), kl_coef=0.1).rewards
    tensor([[-0.1000,  5.0000,  0.0000]])
    """
    zero = torch.zeros_like(logprobs)
    kl = estimate(logprobs, ref_logprobs, mask, estimator)
    per_token = scores.dim() == 2
    final = torch.zeros_like(scores[:, 0]) if per_token else scores
    final = shape_scores(final, finished, score_clip=score_clip, missing_eos_penalty=missing_eos_penalty)
    earned = zero.scatter(1, last_index(mask).unsqueeze(1), final.to(zero.dtype).unsqueeze(1))
    if per_token:
        earned = earned + shape_scores(scores, torch.ones_like(mask), score_clip=score_clip)
    return ShapedRewards(torch.where(mask, earned - kl_coef * kl, zero), kl)
