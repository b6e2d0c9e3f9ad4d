"""How many held-out pairs are ranked right without a model: by length, and by counting tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, softplus

from rlhf_lightning.data.comparisons import Comparison
from rlhf_lightning.functional.reward import kwise_pairs

MOST_PROMPTS = 2000  # training prompts that the bag of words is fitted on: seconds, where all would be minutes


def baselines(train: Sequence[Comparison], held_out: Sequence[Comparison]) -> dict[str, float]:
    """Accuracy on the held-out pairs of what was fitted on the training pairs, a tie counting as half.

    Args:
        train: rankings of the training rows.
        held_out: rankings that are judged; empty gives an empty result.
    """
    if not held_out or not train:
        return {}
    mine, theirs = _answers(train[:MOST_PROMPTS]), _answers(held_out)
    sign = _length_differences(mine).sign().sum().sign()
    weights = _bag_of_words(mine, 1 + max(int(part.tokens.max()) for part in (mine, theirs)))
    return {
        "baseline_length_accuracy": _accuracy(sign * _length_differences(theirs)),
        "baseline_words_accuracy": _accuracy(_differences(weights, theirs)),
    }


class _Answers(NamedTuple):
    tokens: Tensor  # of all answers, one after the other, long
    starts: Tensor  # where each answer begins, long [N]
    better: Tensor  # answers of each pair, long
    worse: Tensor


def _answers(items: Sequence[Comparison]) -> _Answers:
    answers = [s[-n:] for item in items for s, n in zip(item.sequences, item.lengths, strict=True)]
    sizes = torch.tensor([len(answer) for answer in answers])
    owner = torch.arange(len(items)).repeat_interleave(torch.tensor([len(item.ranks) for item in items]))
    better, worse, _ = kwise_pairs(torch.tensor([rank for item in items for rank in item.ranks]), owner)
    return _Answers(torch.tensor([i for answer in answers for i in answer]), sizes.cumsum(0) - sizes, better, worse)


def _length_differences(answers: _Answers) -> Tensor:
    lengths = torch.diff(answers.starts, append=torch.tensor([len(answers.tokens)])).float()
    return lengths[answers.better] - lengths[answers.worse]


def _differences(weights: Tensor, answers: _Answers) -> Tensor:
    """Score of the better minus that of the worse answer, each the sum of its tokens' ``weights [V]``."""
    scores = embedding_bag(answers.tokens, weights[:, None], answers.starts, mode="sum").squeeze(1)
    return scores[answers.better] - scores[answers.worse]


@torch.enable_grad()
def _bag_of_words(answers: _Answers, vocabulary: int) -> Tensor:
    """Logistic regression on token counts, ridge penalty ``|w|^2 / 2`` against the sum over pairs; ``[V]``."""
    weights = torch.zeros(vocabulary, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        gaps = _differences(weights, answers)
        loss = (softplus(-gaps).sum() + weights.square().sum() / 2) / max(len(gaps), 1)
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def _accuracy(gaps: Tensor) -> float:
    return ((gaps > 0).float() + (gaps == 0).float() / 2).mean().item()
