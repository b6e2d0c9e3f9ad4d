"""Sums over micro-batches and ranks, so that every mean has a global denominator."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rlhf_lightning.training.ranks import Ranks


class Totals:
    """Named sums that grow with each micro-batch and are divided once, over all ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add the sums [] of one micro-batch."""
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().double()

    def means(self, ranks: Ranks, count: str) -> dict[str, float]:
        """Every sum over all ranks divided by the sum called ``count``, which itself stays a sum; then reset."""
        names = sorted(self._sums)
        totals = dict(zip(names, ranks.sum(*(self._sums[n] for n in names)), strict=True))
        self._sums = {}
        return {n: v if n == count else v / max(totals[count], 1.0) for n, v in totals.items()}
