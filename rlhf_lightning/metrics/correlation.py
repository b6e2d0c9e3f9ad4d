"""How scores go with each other and with length, by torchmetrics where its numbers are exact."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef
from torchmetrics.functional.classification import binary_auroc

from rlhf_lightning.functional.diagnostics import average_ranks


class LengthBias(NamedTuple):
    """How much of a score is length; all 0 when scores or lengths do not vary."""

    pearson: float
    spearman: float
    slope_per_token: float  # least squares


def length_bias(scores: Tensor, lengths: Tensor) -> LengthBias:
    """How scores ``[N]`` go with response lengths ``[N]`` in tokens.

    Spearman's is `pearson` of the ranks, since ``spearman_corrcoef`` adds 1e-6 to its denominator.

    >>> round(length_bias(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10, 20, 30])).slope_per_token, 6)
    0.1
    """
    scores, lengths = scores.double(), lengths.double()
    linear = pearson(scores, lengths)
    slope = linear and linear * (scores.std(correction=0) / lengths.std(correction=0)).item()
    return LengthBias(linear, pearson(average_ranks(scores), average_ranks(lengths)), slope)


def pearson(x: Tensor, y: Tensor) -> float:
    """Correlation of two ``[N]`` tensors; 0 when one of them does not vary, where torchmetrics warns and gives NaN.

    >>> pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0]))
    0.0
    """
    if (x == x[:1]).all() or (y == y[:1]).all():
        return 0.0
    return pearson_corrcoef(x.double(), y.double()).item()


def spearman_within(x: Tensor, y: Tensor, group: Tensor) -> float:
    """Spearman correlation of ``x [N]`` and ``y [N]`` by their ranks inside each ``group [N]``, long; 0 without any.

    Ranks start from the mean of their group, so what differs between groups does not count.

    >>> spearman_within(torch.tensor([1.0, 2, 9, 8]), torch.tensor([5.0, 6, 1, 3]), torch.tensor([0, 0, 1, 1]))
    0.0
    """
    _, number, count = group.unique(return_inverse=True, return_counts=True)
    inside = []
    for values in (x, y):
        ranks = average_ranks(number * (len(values) + 1) + average_ranks(values.double()))
        inside.append(ranks - (ranks.new_zeros(len(count)).index_add(0, number, ranks) / count)[number])
    return pearson(*inside)


def auroc(better: Tensor, worse: Tensor) -> float:
    """Chance that one of the ``better`` scores ``[N]`` is above one of the ``worse`` ``[M]``, a tie counting as half.

    Of ranks, since ``binary_auroc`` sends scores through a sigmoid, after which large ones are equal.

    >>> auroc(torch.tensor([1.0, 100.0]), torch.tensor([99.0]))
    0.5
    """
    ranks = average_ranks(torch.cat([better, worse]).double())
    return binary_auroc(ranks / len(ranks), (torch.arange(len(ranks)) < len(better)).long()).item()
