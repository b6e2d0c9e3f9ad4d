"""Several scorers of the same thing: they agree where they know, and their disagreement says where they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kl import totals
from rlhf_lightning.functional.scores import ensemble_mean, uncertainty_weighted, worst_case
from rlhf_lightning.models import Pretrained
from rlhf_lightning.models.loading import Attention, DType
from rlhf_lightning.scoring.reward_model import RewardModelScorer
from rlhf_lightning.scoring.scorer import Composite, Faults, Scorer, on_last_token
from rlhf_lightning.types import Rollout

Combination = Literal["mean", "worst_case", "uncertainty_weighted"]


class EnsembleScorer(Composite):
    """One score from several members that judge the same thing on the same scale.

    Reward models are put on one scale by their stored statistics (``normalise``). Members that were trained with other
    seeds on the same comparisons already help against reward hacking. An answer that a member abstains from (NaN) is
    not judged.

    Args:
        members: at least two scorers.
        combine: ``mean``; ``worst_case``, the lowest member; ``uncertainty_weighted``, mean - coef * variance.
        coef: coefficient of the variance.
        name: how the ensemble is called in logs.

    Attributes:
        details: ``disagreement``, the standard deviation over the members, float [B]; of the last call.

    Source: Coste et al. 2023, arXiv:2310.02743.

    Raises:
        ConfigError: fewer than two members, or an unknown ``combine``.
    """

    def __init__(
        self,
        members: Sequence[Scorer],
        combine: Combination = "uncertainty_weighted",
        coef: float = 0.5,
        name: str = "ensemble",
    ) -> None:
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "mean": ensemble_mean,
            "worst_case": worst_case,
            "uncertainty_weighted": partial(uncertainty_weighted, coef=coef),
        }
        if len(members) < 2:
            raise ConfigError(f"scorer.members: an ensemble needs at least 2 members, not {len(members)}")
        if combine not in ways:
            raise ConfigError(f"scorer.combine={combine}: choose {', '.join(ways)}")
        super().__init__()
        self.name = name
        self.members = list(members)
        self._combine = ways[combine]

    def parts(self) -> Iterator[tuple[str, Scorer]]:
        """The members, by their number."""
        return ((str(number), member) for number, member in enumerate(self.members))

    def score(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """The combined score, float32 [B], or [B, T] if a member judges tokens."""
        faults = Faults()
        scores = [faults.score(member, rollout, tokenizer) for member in self.members]
        faults.check()
        whole = torch.stack([totals(score, rollout.mask) for score in scores])  # [members, B]
        self._kept.append((rollout, {"disagreement": whole.std(0, correction=0)}))
        if all(score.dim() == 1 for score in scores):
            return self._combine(whole)
        return self._combine(torch.stack([on_last_token(score, rollout.mask) for score in scores]))


def reward_models(
    folders: Sequence[str],
    dtype: DType = "float32",
    attn_implementation: Attention = "auto",
    normalise: bool = True,
    micro_batch_size: int = 16,
    offload: bool = False,
    load_in_4bit: bool = False,
) -> list[RewardModelScorer]:
    """One `RewardModelScorer` for each folder, named after its place; arguments as there and in `Pretrained`."""
    return [
        RewardModelScorer(
            Pretrained(folder, dtype, attn_implementation, offload=offload, load_in_4bit=load_in_4bit),
            name=f"reward_model_{number}",
            normalise=normalise,
            micro_batch_size=micro_batch_size,
        )
        for number, folder in enumerate(folders)
    ]
