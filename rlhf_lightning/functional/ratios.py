"""Importance ratios beside the one of PPO: of whole sequences, and between training and the engine that samples."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional.ppo import MAX_LOG_RATIO, masked_log_ratio


def geometric_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``exp`` of the mean log-ratio over the tokens of each response, ``[B]`` from ``[B, T]``; 1 for an empty row.

    Source: Zheng et al. 2025 (GSPO), arXiv:2507.18071.

    >>> new = torch.tensor([[4.0, 1.0]]).log()
    >>> geometric_ratio(new, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    tensor([2.])
    """
    log_ratio = masked_log_ratio(logprobs, old_logprobs, mask)
    return (log_ratio.sum(1) / mask.sum(1).clamp(min=1)).exp()


def product_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Product of the ratios of the tokens of each response, ``[B]`` from ``[B, T]``; its logarithm is clamped to +-20.

    >>> new = torch.tensor([[4.0, 1.0]]).log()
    >>> product_ratio(new, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    tensor([4.])
    """
    log_ratio = masked_log_ratio(logprobs, old_logprobs, mask).sum(1)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def truncated_token_weights(
    old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, *, high: float = 2.0
) -> Tensor:
    """``min(pi_old / pi_rollout, high)`` of each token, ``[B, T]``, 0 outside the mask.

    Corrects for an engine that samples from slightly different probabilities than training computes.
    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".

    >>> old = torch.tensor([[3.0, 0.5]]).log()
    >>> truncated_token_weights(old, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    tensor([[2.0000, 0.5000]])
    """
    return torch.where(mask, masked_log_ratio(old_logprobs, rollout_logprobs, mask).exp().clamp(max=high), 0)


def masked_token_weights(
    old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, *, low: float = 0.5, high: float = 2.0
) -> Tensor:
    """``pi_old / pi_rollout`` of each token where it lies in ``[low, high]``, else 0; ``[B, T]``.

    >>> old = torch.tensor([[3.0, 0.5]]).log()
    >>> masked_token_weights(old, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), low=0.4)
    tensor([[0.0000, 0.5000]])
    """
    weights = masked_log_ratio(old_logprobs, rollout_logprobs, mask).exp()
    return torch.where(mask & (weights >= low) & (weights <= high), weights, 0)


def truncated_sequence_weights(
    old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, *, high: float = 2.0
) -> Tensor:
    """``min(product of pi_old / pi_rollout, high)`` of each response, ``[B, 1]``.

    >>> old = torch.tensor([[3.0, 0.5]]).log()
    >>> truncated_sequence_weights(old, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    tensor([[1.5000]])
    """
    return product_ratio(old_logprobs, rollout_logprobs, mask).clamp(max=high).unsqueeze(1)


def masked_sequence_weights(
    old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, *, low: float = 0.5, high: float = 2.0
) -> Tensor:
    """Product of ``pi_old / pi_rollout`` of each response where it lies in ``[low, high]``, else 0; ``[B, 1]``.

    >>> old = torch.tensor([[3.0, 0.5]]).log()
    >>> masked_sequence_weights(old, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), high=1.2)
    tensor([[0.]])
    """
    weights = product_ratio(old_logprobs, rollout_logprobs, mask)
    return torch.where((weights >= low) & (weights <= high), weights, 0).unsqueeze(1)


CORRECTIONS = {
    "token_truncate": truncated_token_weights,
    "token_mask": masked_token_weights,
    "sequence_truncate": truncated_sequence_weights,
    "sequence_mask": masked_sequence_weights,
}
"""The rollout corrections by the name configs give them."""
