"""The processes of a run: what each has, known to all, and how they agree on an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")
LONGEST = timedelta(hours=2)
"""How long a process waits for the others to write or read their parts. ``trainer.strategy.timeout`` is no measure for
that: it says in which time they answer each other while they learn, and a save takes as long as the disk does."""


@dataclass(frozen=True)
class Processes:
    """All processes of a run, seen from one of them; ``Processes()`` is one on its own.

    Methods are collective: every process calls them in the same order, one at a time.

    >>> Processes().agree(lambda: 3)
    [3]
    """

    group: Any = None
    index: int = 0
    size: int = 1

    def gather(self, value: T) -> list[T]:
        """The picklable values of all."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        values[self.index] = value  # itself: an error with its traceback
        return values

    def first(self, value: T) -> T:
        """The picklable value of the first process."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def agree(self, work: Callable[[], T]) -> list[T]:
        """What ``work`` returns in each process. What it raises in one of them, the first one, is raised in all."""
        return results(self.gather(attempt(work)))


def attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What ``work`` returns, and what it raises."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def results(attempts: list[tuple[T | None, Exception | None]]) -> list[T]:
    """What each `attempt` returned; raises the first error, if there is one."""
    for _, error in attempts:
        if error is not None:
            raise error
    return [result for result, _ in attempts]  # type: ignore[misc]


def everyone() -> Processes:
    """All processes of the run, if they have met, as they talk while they learn: one that does not answer in
    ``trainer.strategy.timeout`` ends the run."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Processes()
    return Processes(dist.group.WORLD, dist.get_rank(), dist.get_world_size())


def together() -> Processes:
    """The same for writing and reading: they wait `LONGEST` for each other, over a group of their own on the CPU, so
    that a save may go on in a thread beside the training. Collective when it is called for the first time."""
    found = everyone()
    return found if found.size == 1 else replace(found, group=_group(found.group))


@cache
def _group(world: Any) -> Any:
    """A group of all processes of ``world``, made once."""
    return dist.new_group(backend="gloo", timeout=LONGEST)
