"""Saving beside the training: a copy of the state in host memory, and a thread that writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlhf_lightning.checkpoint.processes import attempt
from rlhf_lightning.checkpoint.tensors import Rows, rows_of


class Writing:
    """A folder that is being written, at once or by a thread.

    Args:
        path: the folder.
        write: writes it.
        background: in a thread, which ends with the process at the latest; what is not complete then has no name.
    """

    def __init__(self, path: Path, write: Callable[[], Any], background: bool) -> None:
        self.path = path
        self._write = write
        self._error: Exception | None = None
        self._thread: Thread | None = None
        if background:
            self._thread = Thread(target=self._run, name=f"save {path.name}", daemon=True)
            self._thread.start()
        else:
            self._run()

    def _run(self) -> None:
        _, self._error = attempt(self._write)
        del self._write  # and the copy that it writes

    def done(self, seconds: float | None = 0.0) -> bool:
        """Whether nothing is left to write, ``seconds`` from now at the latest; None waits for it."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def error(self) -> Exception | None:
        """What went wrong; waits for the end."""
        self.done(None)
        return self._error


class Copies:
    """Copies of a state in host memory, one at a time: each is made in the memory of the one before.

    Fresh memory costs more than the copy, since the system clears every page of it first.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def of(self, state: Any) -> Any:
        """A copy of nested dicts, lists, tuples and tensors; of a sharded tensor, of the rows that are here.

        What is one tensor stays one. The copy before must not be needed any more: a tensor of the same shape and dtype
        replaces its numbers.
        """
        free: dict[Any, list[Tensor]] = {}
        for tensor in self._kept:
            free.setdefault((tensor.dtype, tensor.shape), []).append(tensor)
        made: dict[Any, Tensor] = {}
        copy = _copied(state, made, free)
        self._kept = [*made.values()]
        return copy

    def clear(self) -> None:
        """Let go of the memory."""
        self._kept = []


def _copied(value: Any, made: dict[Any, Tensor], free: dict[Any, list[Tensor]]) -> Any:
    if isinstance(value, DTensor) and value.numel():
        value = rows_of(value)
    if isinstance(value, Rows):
        return Rows(_copied(value.local, made, free), value.start, value.shape)
    if isinstance(value, Tensor) and value.numel():
        place = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
        if place not in made:
            there = free.get((value.dtype, value.shape))
            made[place] = there.pop() if there else torch.empty_like(value, device="cpu", requires_grad=False)
            made[place].copy_(value.detach())
        return made[place]
    if isinstance(value, Mapping):
        return {key: _copied(item, made, free) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item, made, free) for item in value]
    if isinstance(value, tuple):
        return tuple(_copied(item, made, free) for item in value)
    return value
