"""The processes that train together: sums, gathers, moments and agreement over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn

from rlhf_lightning.checkpoint.processes import everyone
from rlhf_lightning.functional.masking import Moments, masked_moments, merge_moments, whiten_with

CPU = torch.device("cpu")
BUCKET = 25 * 2**20  # bytes of gradients in one all-reduce, as in DDP


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
    def averages(self) -> bool:
        """Whether each rank computes gradients of its own, which the last backward of a step averages (DDP).

        A static graph is left to DDP, which learns in its first steps what it all-reduces when.
        """
        ddp = getattr(self.strategy, "model", None)
        return isinstance(self.strategy, DDPStrategy) and not getattr(ddp, "static_graph", False)

    @property
    def may_repeat(self) -> bool:
        """Whether this rank may do again what it computes now, since no other waits for it inside.

        Not a forward that gathers shared weights, nor, under DDP, a backward that is not `accumulating`.
        """
        if not self.averages:
            return self.strategy is None or isinstance(self.strategy, SingleDeviceStrategy)
        synchronous = getattr(self.strategy.model, "require_backward_grad_sync", False)  # type: ignore[union-attr]
        return not (synchronous and torch.is_grad_enabled())

    def reduce(self, tensor: Tensor) -> Tensor:
        """A tensor summed element-wise over all ranks, in place; the strategy's own would have them wait once more."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def sum(self, *values: Tensor | float) -> list[float]:
        """Each value [] summed over all ranks."""
        packed = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self.device).detach() for v in values])
        return self.reduce(packed).tolist()

    def any(self, value: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.sum(value)[0])

    def lowest(self, value: float) -> float:
        """The smallest value of all ranks."""
        return float(self.gather(torch.tensor(value, dtype=torch.float64)).min())

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

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set gradients to their mean over ranks, as DDP's last backward does, when all were `accumulating`.

        A rank that has no gradient where another has one adds 0; where none has one, there is none.

        Args:
            parameters: the same on every rank, in the same order.
        """
        learned = [weight for weight in parameters if weight.requires_grad]
        has = torch.tensor([weight.grad is not None for weight in learned], dtype=torch.float32, device=self.device)
        used = [weight for weight, ranks in zip(learned, self.reduce(has).tolist(), strict=True) if ranks]
        for weight in used:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        for bucket in _buckets([weight.grad for weight in used if weight.grad is not None]):
            local = bucket[0].flatten() if len(bucket) == 1 else torch.cat([grad.flatten() for grad in bucket])
            mean = self.reduce(local.mul_(1 / self.size))
            for grad, part in zip(bucket, mean.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(part.view_as(grad))

    def wait(self) -> None:
        """Return when every rank is here."""
        if self.strategy is not None:
            self.strategy.barrier()


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of at most `BUCKET` bytes together; a larger gradient alone."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(other.nbytes for other in bucket) + gradient.nbytes > BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
