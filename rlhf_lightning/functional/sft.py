"""Next-token loss of supervised fine-tuning."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.functional.logprobs import entropy_of, log_softmax


class TokenNLL(NamedTuple):
    """Per-token numbers for tokens ``1 .. S - 1``; entries outside the mask are 0 (False)."""

    nll: Tensor  # float [B, S - 1], nats, differentiable
    mask: Tensor  # bool [B, S - 1], True at predicted tokens that count
    correct: Tensor  # bool [B, S - 1], the most likely token is the right one
    entropy: Tensor  # float [B, S - 1], nats, no grad


def token_nll(logits: Tensor, input_ids: Tensor, mask: Tensor) -> TokenNLL:
    """Negative log-likelihood of each token that is to be predicted, with the shift by one done here.

        nll[b, t] = -log softmax(logits[b, t])[input_ids[b, t + 1]]

    Args:
        logits: ``[B, S, V]``. input_ids: long ``[B, S]``. mask: bool ``[B, S]``, True at tokens to be predicted
        (completion and its EOS). The first column is never predicted.

    >>> logits = torch.tensor([[[1.0, 3.0], [1.0, 1.0]]]).log()
    >>> token_nll(logits, torch.tensor([[0, 1]]), torch.tensor([[False, True]])).nll
    tensor([[0.2877]])
    """
    targets, counted = input_ids[:, 1:], mask[:, 1:]
    log_probs = log_softmax(logits[:, :-1])
    nll = -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        correct = (log_probs.argmax(-1) == targets) & counted
        entropy = torch.where(counted, entropy_of(log_probs.detach()), 0)
    return TokenNLL(torch.where(counted, nll, 0), counted, correct, entropy)


def perplexity(mean_nll: Tensor) -> Tensor:
    """``exp`` of a token-mean loss in nats: how many equally likely tokens it amounts to.

    >>> perplexity(torch.tensor(2.0).log())
    tensor(2.)
    """
    return mean_nll.exp()
