"""Several scorers as one: a weighted sum in which each may abstain, and each is logged apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kl import totals
from rlhf_lightning.scoring.scorer import Composite, Details, Faults, Scorer, details_of, on_last_token
from rlhf_lightning.scoring.transforms import Transform, check_order, transformed
from rlhf_lightning.types import Rollout


@dataclass(frozen=True)
class Source:
    """One part of a reward.

    Args:
        scorer: judges answers, or tokens of them.
        weight: of its score in the sum; below 0 it is a penalty.
        transforms: what is done to its score first, see `rlhf_lightning.scoring.transforms`.
    """

    scorer: Scorer
    weight: float = 1.0
    transforms: Sequence[Transform] = ()


class RewardSources(Composite):
    """A weighted sum of scorers.

        score = sum_i weight_i * score_i,  over the sources i that judged the answer

    A source abstains from an answer with NaN; its term is then left out and the other weights stay as they are. An
    answer that no source scores is NaN, and PPO learns nothing from it. If any source judges tokens [B, T], so does the
    sum: scores of whole answers go to the last token.

    Args:
        sources: by the names they have in logs; a `Source`, its arguments as a mapping, or a bare scorer of weight 1.
        transforms: what is done to the sum.
        name: of the sum, where a scorer's name is logged.

    Attributes:
        details: what each source said in the last call before transforms and weights, float [B] by name, sums over
            tokens where it judges tokens; a source's own details as ``<name>/<detail>``.

    Raises:
        ConfigError: no sources, a source without a scorer, a weight that is not finite, or transforms out of order.
    """

    def __init__(
        self,
        sources: Mapping[str, Source | Mapping[str, Any] | Scorer],
        transforms: Sequence[Transform] = (),
        name: str = "sources",
    ) -> None:
        if not sources:
            raise ConfigError(
                "scorer.sources is empty; add one with +scorer@scorer.sources.NAME.scorer=function "
                "scorer.sources.NAME.scorer.function=my_project.fn"
            )
        super().__init__()
        self.name = name
        self.sources = {key: _source(key, given) for key, given in sources.items()}
        self.transforms = list(transforms)
        check_order(self.transforms, "scorer.transforms")

    def parts(self) -> Iterator[tuple[str, Any]]:
        """The transforms of the sum, then each scorer and its transforms."""
        yield from ((f"transforms/{type(t).__name__}", t) for t in self.transforms)
        for name, source in self.sources.items():
            yield f"sources/{name}", source.scorer
            yield from ((f"sources/{name}/{type(t).__name__}", t) for t in source.transforms)

    def score(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """The sum after its transforms, float32 [B], or [B, T] if a source judges tokens; NaN where nobody judged."""
        details: Details = {}
        faults = Faults()
        mixed = self._mix(faults, rollout, tokenizer, details)
        scores = transformed(self.transforms, mixed, rollout, tokenizer, partial(self._mix, faults))
        faults.check()
        self._kept.append((rollout, details))
        return scores

    def _mix(
        self, faults: Faults, rollout: Rollout, tokenizer: PreTrainedTokenizerBase, details: Details | None = None
    ) -> Tensor:
        scores = []
        for name, source in self.sources.items():
            judge = partial(faults.score, source.scorer)
            score = judge(rollout, tokenizer)
            if details is not None:
                own = details_of(source.scorer, rollout)
                details |= {name: totals(score, rollout.mask)}
                details |= {f"{name}/{part}": column for part, column in own.items()}
            scores.append(transformed(source.transforms, score, rollout, tokenizer, judge))
        return weighted_sum(scores, [source.weight for source in self.sources.values()], rollout.mask)


def weighted_sum(scores: Sequence[Tensor], weights: Sequence[float], mask: Tensor) -> Tensor:
    """Weighted scores added up over those that judged; NaN in rows that none did.

    Args:
        scores: [B] or [B, T] each; a row that is not finite at a token that counts abstains.
        weights: one per score.
        mask: tokens that count, bool [B, T].

    Returns:
        [B] if all scores are, else [B, T] with 0 outside the mask.

    >>> nan = float("nan")
    >>> weighted_sum([torch.tensor([1.0, nan]), torch.tensor([2.0, 3.0])], [1.0, 0.5], torch.ones(2, 1).bool())
    tensor([2.0000, 1.5000])
    """
    judged = torch.stack([~totals(score, mask).isnan() for score in scores])
    if any(score.dim() == 2 for score in scores):
        scores = [on_last_token(score, mask) for score in scores]
        judged = judged.unsqueeze(-1)
    terms = [w * torch.where(known, v, 0) for w, known, v in zip(weights, judged, scores, strict=True)]
    return torch.where(judged.any(0), torch.stack(terms).sum(0), torch.nan)


def _source(name: str, given: Source | Mapping[str, Any] | Scorer) -> Source:
    where = f"scorer.sources.{name}"
    if isinstance(given, Mapping):
        try:
            given = Source(**given)
        except TypeError as error:
            raise ConfigError(f"{where}: {error}; a source has scorer, weight and transforms") from error
    source = given if isinstance(given, Source) else Source(given)
    if not hasattr(source.scorer, "score"):
        raise ConfigError(
            f"{where}.scorer: {source.scorer!r} is no scorer; choose one with scorer@{where}.scorer=function"
        )
    if not math.isfinite(source.weight):
        raise ConfigError(
            f"{where}.weight={source.weight}: must be a finite number; remove the source to switch it off"
        )
    check_order(source.transforms, f"{where}.transforms")
    return source
