"""What to do when memory runs out: the same work again, in smaller pieces."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from rlhf_lightning.errors import OutOfMemory

T = TypeVar("T")
_SIGNS = ("not enough memory", "DefaultCPUAllocator", "out of memory")  # of allocators that raise a bare RuntimeError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the CPU had no memory left.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def fits(work: Callable[[], object]) -> bool:
    """Do the work; False if memory ran out. When this has returned, nothing holds the tensors of a failed attempt."""
    try:
        work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # so that smaller pieces find room in one place
    return False


class Proven:
    """How many tokens at once this rank has had memory for, with their gradients.

    The first step does not count: the optimizer keeps state of its own only behind it.

    >>> proven = Proven()
    >>> for tokens in (40, 30, 20):
    ...     proven.add(tokens)
    >>> proven.tokens
    30
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._begun = False

    def add(self, tokens: int) -> None:
        """A step is done whose largest micro-batch has so many."""
        if self._begun:
            self.tokens = max(self.tokens, tokens)
        self._begun = True


def halved(attempt: Callable[[int], T], size: int, what: str, advice: str, smallest: int = 1) -> tuple[T, int]:
    """Call ``attempt(size)``, and again with half the size as long as memory does not suffice.

    Args:
        attempt: does the work with so many rows at once; called again from the start.
        size: rows to begin with.
        what: the work, for messages.
        advice: which keys to lower if the smallest size does not fit either.
        smallest: where to give up.

    Returns:
        what ``attempt`` gave, and the size that fitted.

    Raises:
        OutOfMemory: it did not fit at the smallest size.
    """
    results: list[T] = []
    while not fits(lambda rows=size: results.append(attempt(rows))):  # type: ignore[misc]
        if size <= smallest:
            raise OutOfMemory(f"{what}: out of memory with {size} row{'s' * (size > 1)} at once; {advice}")
        size = max(size // 2, smallest)
        warnings.warn(f"{what}: out of memory; from now on at most {size} rows at once", stacklevel=2)
    return results[0], size
