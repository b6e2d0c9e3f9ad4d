"""The contract of everything that judges an answer."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.types import Rollout


class Scorer(Protocol):
    """Gives each response one number. Higher is better."""

    name: str

    def score(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Scores, float32 [B] on the rollout's device; ``tokenizer`` is the policy's."""

    def to(self, device: torch.device | str) -> Any:
        """Move what the scorer holds."""


def completion_texts(rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The responses as text without special tokens, B strings."""
    ids = [row[mask].tolist() for row, mask in zip(rollout.response_ids, rollout.mask, strict=True)]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)
