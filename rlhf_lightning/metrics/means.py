"""Means over micro-batches and ranks, each a sum over one global count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Means(Metric):
    """Named sums that grow with each micro-batch and are divided once, over all ranks.

    Kept in float64; not part of the state dict.

    Args:
        counts: by the name of a sum, that of the sum which divides it; the one under "" divides those not listed.

    >>> means = Means({"": "num_pairs"})
    >>> means.update({"num_pairs": torch.tensor(3), "accuracy": torch.tensor(2)})
    >>> means.update({"num_pairs": torch.tensor(1), "accuracy": torch.tensor(1)})
    >>> means.compute()
    {'accuracy': 0.75, 'num_pairs': 4.0}
    """

    full_state_update = False
    sums: Tensor  # float64 [names], zero [] before the first update

    def __init__(self, counts: Mapping[str, str]) -> None:
        super().__init__(dist_sync_fn=_of_all_ranks, distributed_available_fn=self._has_others)
        self.counts = counts
        self.alone = False  # whether this process trains by itself while others wait
        self.names: list[str] = []
        self.add_state("sums", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, sums: Mapping[str, Tensor]) -> None:
        """Add the sums [] of one micro-batch, of the same names each time."""
        names = sorted(sums)
        if self.update_count > 1 and names != self.names:
            raise ValueError(f"a micro-batch gave the sums {names} for the log, the ones before it {self.names}")
        self.names = names
        # float64 wins over whatever a change of the model's dtype has made of the zero; counts come from the CPU
        self.sums = self.sums + torch.stack(
            [sums[n].detach().to(self.device, torch.float64, non_blocking=True) for n in names]
        )

    def compute(self) -> dict[str, float]:
        """By name, every sum over all ranks divided by its count, 0 for a count of 0; counts themselves stay sums."""
        totals = dict(zip(self.names, self.sums.tolist(), strict=True))
        kept, other = set(self.counts.values()), self.counts[""]
        return {n: v if n in kept else v / max(totals[self.counts.get(n, other)], 1.0) for n, v in totals.items()}

    def _has_others(self) -> bool:
        return torch.distributed.is_available() and torch.distributed.is_initialized() and not self.alone


def _of_all_ranks(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """A tensor of the same shape on every rank, from each; torchmetrics' own also waits for all and asks for shapes."""
    ranks = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(ranks, tensor, group)
    return ranks
