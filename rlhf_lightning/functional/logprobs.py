"""Log-probabilities and entropy of tokens. The log-softmax is computed in float32 at least, whatever the logits are."""

from __future__ import annotations

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


def gather_logprobs(logits: Tensor, ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of ``ids[b, t]`` under ``logits[b, t]``; the caller has aligned the two.

    Args:
        logits: ``[B, T, V]``.
        ids: long ``[B, T]``.
        temperature: the one the tokens were sampled at; the same for every policy that is compared.

    Returns:
        ``[B, T]``, nats.

    >>> gather_logprobs(torch.tensor([[[1.0, 3.0]]]).log(), torch.tensor([[1]])).exp()
    tensor([[0.7500]])
    """
    return log_softmax(logits, temperature=temperature).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def token_logprobs(logits: Tensor, input_ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token but the first, given the tokens before it.

        out[b, t] = log softmax(logits[b, t] / temperature)[input_ids[b, t + 1]]

    Args:
        logits: ``[B, S, V]``, ``logits[:, t]`` scores token ``t + 1``.
        input_ids: long ``[B, S]``.
        temperature: the one the tokens were sampled at.

    Returns:
        ``[B, S - 1]``, nats. The response after a prompt of ``P`` columns is ``out[:, P - 1:]``.

    >>> logits = torch.tensor([[[1.0, 3.0], [1.0, 1.0]]]).log()
    >>> token_logprobs(logits, torch.tensor([[0, 1]])).exp()
    tensor([[0.7500]])
    """
    return gather_logprobs(logits[:, :-1], input_ids[:, 1:], temperature=temperature)


def entropy_of(log_probs: Tensor) -> Tensor:
    """``-sum_v p log p``, ``[...]`` in nats, of normalised ``[..., V]``; forbidden tokens (``-inf``) add 0.

    >>> entropy_of(torch.tensor([0.5, 0.5, 0.0]).log())
    tensor(0.6931)
    """
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)


def entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy of the next-token distribution at each position, ``[B, S]`` in nats, from logits ``[B, S, V]``.

    >>> entropy(torch.zeros(1, 1, 2))
    tensor([[0.6931]])
    """
    return entropy_of(log_softmax(logits, temperature=temperature))
