"""The processes that train together: sums, gathers, moments and agreement over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from torch import Tensor

from rlhf_lightning.checkpoint.processes import everyone
from rlhf_lightning.functional.masking import Moments, masked_moments, merge_moments, whiten_with

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """All processes of a run, seen from one of them. Methods are collective: every rank calls them in the same order.

    Args:
        strategy: Lightning's, which talks to the other ranks; None is a process on its own.
        device: where this rank computes.

    >>> Ranks().sum(2, 0.5)
    [2.0, 0.5]
    """

    strategy: Strategy | None = None
    device: torch.device = CPU

    @property
    def size(self) -> int:
        """Number of ranks."""
        return getattr(self.strategy, "world_size", 1)

    @property
    def index(self) -> int:
        """Of this rank; the first is 0."""
        return getattr(self.strategy, "global_rank", 0)

    @property
    def meet_in_backward(self) -> bool:
        """Whether ranks wait for each other inside of a backward, so that none may repeat one alone."""
        return self.strategy is not None and not isinstance(self.strategy, SingleDeviceStrategy)

    def reduce(self, tensor: Tensor) -> Tensor:
        """A tensor summed element-wise over all ranks."""
        return tensor if self.strategy is None else self.strategy.reduce(tensor, reduce_op="sum")

    def sum(self, *values: Tensor | float) -> list[float]:
        """Each value [] summed over all ranks."""
        packed = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self.device).detach() for v in values])
        return self.reduce(packed).tolist()

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, float64 ``[size, ...]``; they must have the same shape everywhere."""
        ranks = torch.zeros(self.size, *tensor.shape, dtype=torch.float64, device=self.device)
        ranks[self.index] = tensor
        return self.reduce(ranks)

    def gather_objects(self, value: Any) -> list[Any]:
        """The picklable values of all ranks."""
        return everyone().gather(value) if self.size > 1 else [value]

    def first_fault(self, faults: Mapping[str, bool]) -> str | None:
        """The name of the first fault that any rank has, the same on every rank; None if there is none."""
        counts = self.sum(*map(float, faults.values()))
        return next((name for name, count in zip(faults, counts, strict=True) if count), None)

    def moments(self, x: Tensor, mask: Tensor) -> Moments:
        """Count, mean and variance of ``x`` [B, T] over the tokens of all ranks."""
        local = torch.stack([m.double() for m in masked_moments(x, mask)])
        return merge_moments(*self.gather(local).unbind(1))

    def whiten(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x`` [B, T] with zero mean and unit variance over the tokens of all ranks."""
        moments = self.moments(x, mask)
        return whiten_with(x, mask, moments.mean.to(x.dtype), moments.var.to(x.dtype))

    @contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        """Leave gradients on their rank, and average them in the ``last`` backward.

        Sharded ones are averaged in each: whole on every rank, they would take what sharding saves.
        """
        block = getattr(self.strategy, "block_backward_sync", None)
        with nullcontext() if last or block is None else block():
            yield

    def wait(self) -> None:
        """Return when every rank is here."""
        if self.strategy is not None:
            self.strategy.barrier()
