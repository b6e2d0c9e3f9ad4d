"""What is done to scores before they become rewards. Each transform is small; a list of them runs in one fixed order:

1. `Clip`
2. `Normalise` (fixed statistics) or `RunningNormalise`
3. `PreferenceAsReward`
4. `LengthPenalty`
5. `OverlongPenalty`

After them come ``score_clip`` and ``missing_eos_penalty`` of `PPOSettings`, and last the KL penalty. Scores [B] and
[B, T] are both taken unless a class says otherwise; NaN (not judged) stays NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.checkpoint.processes import everyone
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kl import totals
from rlhf_lightning.functional.masking import masked_moments, merge_moments
from rlhf_lightning.scoring.references import Judge, PreferenceAsReward
from rlhf_lightning.scoring.reward_model import statistics
from rlhf_lightning.scoring.scorer import on_last_token
from rlhf_lightning.types import Rollout


@runtime_checkable
class Transform(Protocol):
    """One step between the scores and the rewards."""

    place: ClassVar[int]  # in the order above

    def __call__(self, scores: Tensor, rollout: Rollout) -> Tensor:
        """New scores of the same shape."""


@dataclass(frozen=True)
class Clip:
    """Scores cut to ``[low, high]``, per token where tokens are judged. `PPOSettings.score_clip` clips at the end."""

    low: float
    high: float
    place: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"Clip(low={self.low}, high={self.high}): low must be below high")

    def __call__(self, scores: Tensor, rollout: Rollout) -> Tensor:
        return self.rescale(scores)

    def rescale(self, scores: Tensor) -> Tensor:
        """The same for any scores."""
        return scores.clamp(self.low, self.high)


class Normalise:
    """``(score - mean) / std`` with fixed statistics, best those of reference answers (arXiv:1909.08593, section 2.2).

    `RewardModelScorer` does this by itself; it is for scorers that do not. Scores of tokens are divided by ``std``, and
    ``mean / std`` is taken from the last one.

    Args:
        mean: of the scores of whole answers.
        std: of the same.
        folder: take both from the provenance of this reward model instead.
    """

    place: ClassVar[int] = 2

    def __init__(self, mean: float = 0.0, std: float = 1.0, folder: str | None = None) -> None:
        found = (mean, std) if folder is None else statistics(folder)
        if found is None:
            raise ConfigError(
                f"Normalise(folder={folder}): its provenance has no score_mean; give mean and std, or a folder that "
                "stage=reward has written"
            )
        self.mean, self.std = found
        if not self.std > 0:
            raise ConfigError(f"Normalise(std={std}): must be above 0")

    def __call__(self, scores: Tensor, rollout: Rollout) -> Tensor:
        if scores.dim() == 1:
            return self.rescale(scores)
        shift = torch.full_like(scores[:, 0], self.mean)
        return (scores - on_last_token(shift, rollout.mask)) / self.std

    def rescale(self, scores: Tensor) -> Tensor:
        """The same for scores of whole answers, any shape."""
        return (scores - self.mean) / self.std


class RunningNormalise(Normalise):
    """The same with the statistics of all scores so far, over all ranks, the present ones included.

    They are learned where gradients are enabled: in training, but neither from the greedy answers of a greedy baseline
    nor in `Trainer.predict`. Groups that gave way to others (``max_resamples``) count too. The scale of the score
    drifts with them, and with it what a nat of KL is worth; ``freeze_after`` ends that. They survive a resume.

    Args:
        center: also subtract the mean. False keeps what a score of 0 means.
        freeze_after: rollouts after which the statistics stay as they are; None never stops.
    """

    def __init__(self, center: bool = True, freeze_after: int | None = None) -> None:
        super().__init__()
        self.center = center
        self.freeze_after = freeze_after
        self._count = self._mean = self._var = 0.0
        self._calls = 0

    def __call__(self, scores: Tensor, rollout: Rollout) -> Tensor:
        frozen = self.freeze_after is not None and self._calls >= self.freeze_after
        if torch.is_grad_enabled() and not frozen:
            self._learn(totals(scores.detach(), rollout.mask).double())
        return super().__call__(scores, rollout)

    def _learn(self, scores: Tensor) -> None:
        known = scores.isfinite()
        mine = torch.stack(masked_moments(torch.where(known, scores, 0), known)).tolist()
        parts = torch.tensor([[self._count, self._mean, self._var], *everyone().gather(mine)], dtype=scores.dtype)
        self._set(self._calls + 1, *(float(m) for m in merge_moments(*parts.unbind(1))))

    def _set(self, calls: int, count: float, mean: float, var: float) -> None:
        self._calls, self._count, self._mean, self._var = calls, count, mean, var
        self.mean, self.std = (mean if self.center else 0.0), (math.sqrt(var) if var > 0 else 1.0)

    def state_dict(self) -> dict[str, float]:
        """Count, mean and variance of the scores so far."""
        return {"calls": self._calls, "count": self._count, "mean": self._mean, "var": self._var}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._set(int(state["calls"]), state["count"], state["mean"], state["var"])


@dataclass(frozen=True)
class LengthPenalty:
    """``per_token`` off for each token beyond ``beyond``, taken from the last token; EOS is a token."""

    per_token: float
    beyond: int = 0
    place: ClassVar[int] = 4

    def __call__(self, scores: Tensor, rollout: Rollout) -> Tensor:
        return _added(scores, -self.per_token * (rollout.lengths - self.beyond).clamp(min=0), rollout)


@dataclass(frozen=True)
class OverlongPenalty:
    """Nothing up to ``max_length - buffer`` tokens, then a straight slope down to ``-penalty`` at ``max_length``.

    Source: Yu et al. 2025 (DAPO), arXiv:2503.14476, eq. 13.
    """

    max_length: int
    buffer: int
    penalty: float = 1.0
    place: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_length:
            raise ConfigError(
                f"OverlongPenalty(max_length={self.max_length}, buffer={self.buffer}): buffer must be from 1 to "
                "max_length, which is best sampling.max_new_tokens"
            )

    def __call__(self, scores: Tensor, rollout: Rollout) -> Tensor:
        excess = (rollout.lengths - (self.max_length - self.buffer)) / self.buffer
        return _added(scores, -self.penalty * excess.clamp(0, 1), rollout)


def check_order(transforms: Sequence[Transform], where: str) -> None:
    """Refuse what is no transform, and lists in another order than the one that runs.

    Raises:
        ConfigError: says which comes first.
    """
    for transform in transforms:
        if not isinstance(transform, Transform):
            raise ConfigError(f"{where}: {transform!r} is no transform; see rlhf_lightning.scoring.transforms")
    for first, second in itertools.pairwise(transforms):
        if first.place >= second.place:
            names = type(second).__name__, type(first).__name__
            raise ConfigError(
                f"{where}: {names[0]} cannot follow {names[1]}; the order is Clip, Normalise or RunningNormalise, "
                "PreferenceAsReward, LengthPenalty, OverlongPenalty, each at most once; "
                "to clip at the end set ppo.settings.score_clip"
            )


def transformed(
    transforms: Sequence[Transform], scores: Tensor, rollout: Rollout, tokenizer: PreTrainedTokenizerBase, judge: Judge
) -> Tensor:
    """``scores`` after all ``transforms``; ``judge`` gives the untransformed scores of reference answers."""
    for number, transform in enumerate(transforms):
        if not isinstance(transform, PreferenceAsReward):
            scores = transform(scores, rollout)
            continue
        references = transform.references(rollout, tokenizer, judge)
        for earlier in transforms[:number]:
            if isinstance(earlier, (Clip, Normalise)):
                references = [earlier.rescale(r) for r in references]
        scores = transform.compare(scores, references)
    return scores


def _added(scores: Tensor, amount: Tensor, rollout: Rollout) -> Tensor:
    amount = amount.to(scores.dtype)
    return scores + (amount if scores.dim() == 1 else on_last_token(amount, rollout.mask))
