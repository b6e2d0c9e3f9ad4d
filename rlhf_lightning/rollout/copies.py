"""A copy of the policy that decodes in fewer bits than training computes with, or while it learns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rlhf_lightning.errors import ConfigError

COPIED_ON = ("cuda",)  # devices where ``auto`` makes a copy


def autocast_dtype(policy: PreTrainedModel) -> torch.dtype | None:
    """The dtype of a copy that pays: that of autocast where it is on, on a device where reading weights decides.

    None for weights that have it already, or are sharded.
    """
    weight = next(policy.parameters())
    device = weight.device.type
    if device not in COPIED_ON or isinstance(weight, DTensor) or not torch.is_autocast_enabled(device):
        return None
    dtype = torch.get_autocast_dtype(device)
    return None if weight.dtype == dtype else dtype


@torch.no_grad()
def refreshed(
    copied: PreTrainedModel | None, policy: PreTrainedModel, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """A copy of ``policy``, made on the first call and overwritten on later ones; ``dtype`` None is the policy's."""
    if any(isinstance(p, DTensor) for p in policy.parameters()):
        raise ConfigError(
            "rollout.dtype: sharded weights cannot be copied for sampling; set rollout.dtype=auto, and "
            "trainer.precision=bf16-mixed, which gathers them in bfloat16, and ppo.settings.sample_ahead=false"
        )
    if copied is None:
        fresh: Any = copy.deepcopy(policy)
        return (fresh if dtype is None else fresh.to(dtype)).eval().requires_grad_(False)
    for mine, theirs in zip(copied.parameters(), policy.parameters(), strict=True):
        mine.copy_(theirs)
    return copied
