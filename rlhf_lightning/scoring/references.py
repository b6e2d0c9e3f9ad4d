"""Scores against those of reference answers to the same prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.functional.kl import totals
from rlhf_lightning.functional.scores import preference_as_reward
from rlhf_lightning.functional.sequences import right_pad
from rlhf_lightning.types import Rollout

Judge = Callable[[Rollout, PreTrainedTokenizerBase], Tensor]


@dataclass(frozen=True)
class PreferenceAsReward:
    """The chance of beating reference answers to the same prompt, in (0, 1): a score that cannot run away.

    The references are clipped and normalised like the score. Only for scorers that judge whole answers.

    Args:
        k: steepness.
        column: of the dataset rows, with one entry or a list of them for each prompt.
        holds: ``scores`` of reference answers by the same scorer, before any transform; or the ``answers`` themselves
            as text, which are then scored with every rollout.

    Source: Fu et al. 2025 (PAR), arXiv:2502.18770.
    """

    k: float = 1.0
    column: str = "reference_scores"
    holds: Literal["scores", "answers"] = "scores"
    place: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.holds not in ("scores", "answers"):
            raise ConfigError(f"PreferenceAsReward(holds={self.holds}): choose scores or answers")

    def __call__(self, scores: Tensor, rollout: Rollout) -> Tensor:
        raise TypeError("PreferenceAsReward needs reference scores; call `compare`")

    def references(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase, judge: Judge) -> list[Tensor]:
        """Scores of the reference answers to each prompt, B tensors [M].

        Raises:
            DataError: a row has none.
        """
        entries = [self._entries(row) for row in rollout.rows]
        counts = [len(e) for e in entries]
        if self.holds == "scores":
            found = torch.tensor([float(x) for e in entries for x in e], device=rollout.mask.device)
        else:
            answers = _with_answers(rollout, counts, [text for e in entries for text in e], tokenizer)
            with torch.no_grad():  # running statistics do not learn from references
                found = totals(judge(answers, tokenizer), answers.mask)
        return list(found.split(counts))

    def compare(self, scores: Tensor, references: Sequence[Tensor]) -> Tensor:
        """The chance that each of ``scores`` [B] beats its references."""
        if scores.dim() == 2:
            raise ConfigError("PreferenceAsReward compares whole answers, and this scorer judges tokens; leave it out")
        pairs = zip(scores.split(1), references, strict=True)
        return torch.cat([preference_as_reward(score, refs[None].to(score), k=self.k) for score, refs in pairs])

    def _entries(self, row: Any) -> list[Any]:
        found = row.get(self.column)
        entries = list(found) if isinstance(found, (list, tuple)) else [found]
        if not entries or None in entries:
            raise DataError(
                f"prompt {str(row['prompt'])[:60]!r} has no {self.column}; PreferenceAsReward needs that column in "
                "every row of data.prompts"
            )
        return entries


def _with_answers(
    rollout: Rollout, counts: Sequence[int], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Rollout:
    """The prompts of ``rollout``, each ``counts`` times, with these answers and EOS in place of the sampled ones."""
    rows = torch.arange(len(rollout)).repeat_interleave(torch.tensor(counts))
    eos: Any = tokenizer.eos_token_id
    encoded = [[*tokenizer(text, add_special_tokens=False).input_ids, eos] for text in texts]
    ids, mask = (t.to(rollout.mask.device) for t in right_pad(encoded, eos))
    return replace(
        rollout.select(rows),
        response_ids=ids,
        mask=mask,
        finished=torch.ones_like(mask[:, 0]),
        rollout_logprobs=None,
        context=None,
    )
