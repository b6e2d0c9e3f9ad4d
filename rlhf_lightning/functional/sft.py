"""Next-token loss of supervised fine-tuning."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.functional.logprobs import entropy_of, log_softmax
from rlhf_lightning.functional.masking import spread


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
    log_probs = log_softmax(logits[:, :-1][counted])  # [N, V]: the vocabulary is only looked at where it counts
    wanted = targets[counted]
    nll = spread(-log_probs.gather(-1, wanted.unsqueeze(-1)).squeeze(-1), counted)
    with torch.no_grad():
        correct = spread(log_probs.argmax(-1) == wanted, counted)
        entropy = spread(entropy_of(log_probs.detach()), counted)
    return TokenNLL(nll, counted, correct, entropy)


def perplexity(mean_nll: Tensor) -> Tensor:
    """``exp`` of a token-mean loss in nats: how many equally likely tokens it amounts to.

    >>> perplexity(torch.tensor(2.0).log())
    tensor(2.)
    """
    return mean_nll.exp()
