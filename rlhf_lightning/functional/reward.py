"""Losses that teach a reward model from comparisons.

`kwise_logistic_loss`, `kwise_pair_mean_loss` and `plackett_luce_loss` are called alike, with ``N`` answers of a batch
that belong to ``M`` prompts: ``f(scores, ranks, prompt_index, margins=..., denominator=...)``. None of the losses
changes when a constant is added to all scores of a prompt, so the level of a reward model is free: see
`functional.scores`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlhf_lightning.functional.masking import divide_by_count
from rlhf_lightning.rules.ranges import require


def logistic_loss(difference: Tensor, margin: Tensor | float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """Bradley-Terry loss of each pair, ``[N]``: ``-(1 - s) log sigmoid(d - m) - s log sigmoid(m - d)``.

    Args:
        difference: d, score of the better answer minus score of the worse, ``[N]``.
        margin: m, by how much the better one should win, ``[N]``, in units of the score.
        label_smoothing: s, probability that a label is the wrong way round.

    Sources: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al. 2023, arXiv:2307.09288.

    >>> logistic_loss(torch.zeros(1))  # log 2
    tensor([0.6931])
    """
    gap = difference - margin
    return (1 - label_smoothing) * softplus(-gap) + label_smoothing * softplus(gap)


def pair_statistics(difference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Accuracy (strict), tie rate and mean margin of differences chosen - rejected ``[N]``; detached, zeros for none.

    >>> pair_statistics(torch.tensor([3.0, 0.0, -1.0, 0.0]))
    (tensor(0.2500), tensor(0.5000), tensor(0.5000))
    """
    gap, count = difference.detach(), max(len(difference), 1)
    return (gap > 0).to(gap.dtype).sum() / count, (gap == 0).to(gap.dtype).sum() / count, gap.sum() / count


def pair_mean(per_pair: Tensor, weights: Tensor | None = None, denominator: float | Tensor | None = None) -> Tensor:
    """Mean over pairs ``[N]``, weighted by ``weights [N]`` scaled to sum 1; ``[]``, 0 for no pairs.

    With ``denominator``, the number of pairs of the whole batch, micro-batches add up to the whole; weights are then
    taken as they are, so let them average 1 over the whole batch.

    >>> losses, weights = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])
    >>> pair_mean(losses), pair_mean(losses, weights), pair_mean(losses, weights, denominator=3)
    (tensor(2.), tensor(1.5000), tensor(2.))
    """
    if denominator is None:
        denominator = len(per_pair) if weights is None else weights.sum()
    return divide_by_count((per_pair if weights is None else weights * per_pair).sum(), denominator)


def kwise_pairs(ranks: Tensor, prompt_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every pair of answers to one prompt that differ in rank; equal ranks say nothing about each other.

    Args:
        ranks: long ``[N]``, 1 is best.
        prompt_index: long ``[N]``, which prompt an answer belongs to, ``0 .. M - 1``, in any order.

    Returns:
        ``(better, worse, prompt)``, long ``[Q]`` each: positions of the two answers and their prompt.

    >>> kwise_pairs(torch.tensor([2, 1, 1]), torch.tensor([0, 0, 0]))
    (tensor([1, 2]), tensor([0, 0]), tensor([0, 0]))
    """
    same = prompt_index.unsqueeze(1) == prompt_index.unsqueeze(0)
    better, worse = (same & (ranks.unsqueeze(1) < ranks.unsqueeze(0))).nonzero(as_tuple=True)
    return better, worse, prompt_index[better]


def _num_prompts(prompt_index: Tensor) -> int:
    return int(prompt_index.max()) + 1 if len(prompt_index) else 0


def _pair_losses(
    scores: Tensor,
    ranks: Tensor,
    prompt_index: Tensor,
    margins: Tensor | None,
    label_smoothing: float,
    center_coef: float,
) -> tuple[Tensor, Tensor]:
    """Loss of each pair, with centring, and its prompt; both [Q]."""
    better, worse, prompt = kwise_pairs(ranks, prompt_index)
    margin = 0.0 if margins is None else margins[better]
    loss = logistic_loss(scores[better] - scores[worse], margin, label_smoothing)
    if center_coef:
        loss = loss + center_coef * (scores[better] + scores[worse]).square()
    return loss, prompt


def pairs_per_prompt(ranks: Tensor, prompt_index: Tensor) -> Tensor:
    """How many pairs of different rank each prompt has, long ``[M]``; arguments as `kwise_pairs`.

    >>> pairs_per_prompt(torch.tensor([1, 2, 3, 1]), torch.tensor([0, 0, 0, 1]))
    tensor([3, 0])
    """
    return torch.bincount(kwise_pairs(ranks, prompt_index)[2], minlength=_num_prompts(prompt_index))


def kwise_prompt_losses(
    scores: Tensor,
    ranks: Tensor,
    prompt_index: Tensor,
    *,
    margins: Tensor | None = None,
    center_coef: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean pairwise loss of each prompt, ``[M]``, 0 where no two answers differ; arguments as `kwise_logistic_loss`.

    >>> ranks, prompt = torch.tensor([1, 2, 1, 1]), torch.tensor([0, 0, 1, 1])
    >>> kwise_prompt_losses(torch.zeros(4), ranks, prompt)  # log 2, and a tie
    tensor([0.6931, 0.0000])
    """
    loss, prompt = _pair_losses(scores, ranks, prompt_index, margins, label_smoothing, center_coef)
    counts = torch.bincount(prompt, minlength=_num_prompts(prompt_index))
    return loss.new_zeros(len(counts)).index_add(0, prompt, loss) / counts.clamp(min=1)


def kwise_logistic_loss(
    scores: Tensor,
    ranks: Tensor,
    prompt_index: Tensor,
    *,
    margins: Tensor | None = None,
    center_coef: float = 0.0,
    label_smoothing: float = 0.0,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Mean over prompts of the mean logistic loss over all pairs of that prompt's answers, ``[]``.

    One forward pass per answer serves all its pairs, and a prompt weighs the same however many answers it has.

    Args:
        scores: ``[N]``.
        ranks: long ``[N]``, 1 is best, equal ranks are ties and are not compared.
        prompt_index: long ``[N]``.
        margins: ``[N]``, in units of the score; a pair uses the one of its better answer.
        center_coef: times ``(better + worse)^2``, averaged like the loss.
        label_smoothing: probability that a label is the wrong way round.
        denominator: prompts of the whole batch; None counts the prompts here that have a pair.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1.

    >>> kwise_logistic_loss(torch.zeros(3), torch.tensor([1, 2, 3]), torch.zeros(3).long())  # log 2
    tensor(0.6931)
    """
    require("center_coef", center_coef, at_least=0)
    require("label_smoothing", label_smoothing, at_least=0, below=0.5, why="at a half a label says nothing")
    per_prompt = kwise_prompt_losses(
        scores, ranks, prompt_index, margins=margins, center_coef=center_coef, label_smoothing=label_smoothing
    )
    if denominator is None:
        denominator = (pairs_per_prompt(ranks, prompt_index) > 0).sum()
    return divide_by_count(per_prompt.sum(), denominator)


def kwise_pair_mean_loss(
    scores: Tensor,
    ranks: Tensor,
    prompt_index: Tensor,
    *,
    margins: Tensor | None = None,
    center_coef: float = 0.0,
    label_smoothing: float = 0.0,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """As `kwise_logistic_loss`, but the mean over all pairs: a prompt with more answers weighs more. ``[]``.

    ``denominator`` divides the sum over pairs. With the pairs of the whole batch the result is their mean; a loader
    that counts prompts scales it by the mean number of pairs per prompt. None divides by the pairs here.

    >>> kwise_pair_mean_loss(torch.zeros(3), torch.tensor([1, 2, 3]), torch.zeros(3).long())  # log 2
    tensor(0.6931)
    """
    loss, _ = _pair_losses(scores, ranks, prompt_index, margins, label_smoothing, center_coef)
    return divide_by_count(loss.sum(), len(loss) if denominator is None else denominator)


def plackett_luce_steps(
    scores: Tensor,
    ranks: Tensor,
    prompt_index: Tensor,
    *,
    margins: Tensor | None = None,
    top_k: int | None = None,
) -> Tensor:
    """Loss of choosing each answer from itself and all strictly worse ones, ``[N]``.

        step_i = logsumexp({s_i - m_i} and {s_j : rank_j > rank_i}) - (s_i - m_i)

    0 where nothing is worse and beyond the best ``top_k``. Arguments as `plackett_luce_loss`.

    >>> plackett_luce_steps(torch.zeros(3), torch.tensor([1, 2, 3]), torch.zeros(3).long()).exp()  # 1 of 3, 1 of 2
    tensor([3., 2., 1.])
    """
    same = prompt_index.unsqueeze(1) == prompt_index.unsqueeze(0)
    worse = same & (ranks.unsqueeze(0) > ranks.unsqueeze(1))
    own = scores if margins is None else scores - margins
    choices = torch.where(worse, scores.unsqueeze(0), -torch.inf)
    steps = torch.cat([own.unsqueeze(1), choices], dim=1).logsumexp(1) - own
    if top_k is None:
        return steps
    num_better = (same & (ranks.unsqueeze(0) < ranks.unsqueeze(1))).sum(1)
    return torch.where(num_better < top_k, steps, 0)


def plackett_luce_loss(
    scores: Tensor,
    ranks: Tensor,
    prompt_index: Tensor,
    *,
    margins: Tensor | None = None,
    top_k: int | None = None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Mean over prompts of the negative log-likelihood of the whole ranking, best first, ``[]``.

    Each rank is a softmax choice among the answers not yet taken. Tied answers are not compared with each other, and
    for two answers this is the pairwise logistic loss, margin included.

    Args:
        scores: ``[N]``.
        ranks: long ``[N]``, 1 is best.
        prompt_index: long ``[N]``.
        margins: ``[N]``, subtracted from the score of an answer in its own step.
        top_k: only the best ``top_k`` steps; 1 is "pick the best" (Ziegler et al. 2019).
        denominator: prompts of the whole batch; None counts the prompts here that have a pair.

    Sources: Luce 1959; Plackett 1975.

    >>> plackett_luce_loss(torch.zeros(3), torch.tensor([1, 2, 3]), torch.zeros(3).long()).exp()  # 3 * 2 * 1 orders
    tensor(6.)
    """
    steps = plackett_luce_steps(scores, ranks, prompt_index, margins=margins, top_k=top_k)
    if denominator is None:
        denominator = (pairs_per_prompt(ranks, prompt_index) > 0).sum()
    return divide_by_count(steps.sum(), denominator)
