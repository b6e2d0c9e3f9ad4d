"""Ranks that decode with weights which none of them holds whole: a forward gathers each layer, and all take part."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


class Lockstep:
    """Agrees on what all ranks do, so that they call the model equally often.

    Args:
        policy: whose forwards they share, where its weights are sharded; None, or one that is whole, leaves each rank
            to itself.

    >>> alone = Lockstep(None)
    >>> alone.on, alone.most(3)
    (False, 3)
    """

    def __init__(self, policy: PreTrainedModel | None) -> None:
        weights = [] if policy is None else list(policy.parameters())
        self.on = any(isinstance(weight, DTensor) for weight in weights)
        self._device = weights[0].device if weights else torch.device("cpu")

    def most(self, number: int | Tensor) -> int:
        """The largest number of all ranks. Collective."""
        if not self.on:
            return int(number)
        largest = torch.as_tensor(number, dtype=torch.long, device=self._device).clone()
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)
