"""The scores of rollouts that are fed back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rules.rows import RECORDED_SCORE
from rlhf_lightning.types import Rollout


class RecordedScorer:
    """What the scorer said when ``rollout=replay``'s rollouts were recorded.

    Args:
        name: in logs.
    """

    def __init__(self, name: str = "recorded") -> None:
        self.name = name

    def to(self, device: torch.device | str) -> RecordedScorer:
        """Nothing to move."""
        return self

    def score(self, rollout: Rollout, tokenizer: Any) -> Tensor:
        """The recorded scores, float32 [B], or [B, T] where tokens were judged.

        Raises:
            ConfigError: they were not recorded.
        """
        found = [row.get(RECORDED_SCORE) for row in rollout.rows]
        if None in found:
            raise ConfigError("scorer=recorded: the rollouts have no recorded scores; use rollout=replay, whose have")
        return torch.tensor(found, dtype=torch.float32, device=rollout.response_ids.device)
