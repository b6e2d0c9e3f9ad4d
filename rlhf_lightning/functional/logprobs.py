"""Log-probabilities and entropy of tokens. The log-softmax is computed in float32 at least, whatever the logits are."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_softmax(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """``log softmax(logits / temperature)`` over the last axis; float32, or float64 for float64 logits.

    >>> log_softmax(torch.zeros(2, dtype=torch.bfloat16)).exp()
    tensor([0.5000, 0.5000])
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return (wide if temperature == 1.0 else wide / temperature).log_softmax(-1)


def entropy_of(log_probs: Tensor) -> Tensor:
    """``-sum_v p log p``, ``[...]`` in nats, of normalised ``[..., V]``; forbidden tokens (``-inf``) add 0.

    >>> entropy_of(torch.tensor([0.5, 0.5, 0.0]).log())
    tensor(0.6931)
    """
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)


def perplexity(mean_nll: float) -> float:
    """``exp`` of a token-mean loss in nats: how many equally likely tokens it amounts to; at most e^700.

    >>> perplexity(math.log(2))
    2.0
    """
    return math.exp(min(mean_nll, 700.0))
