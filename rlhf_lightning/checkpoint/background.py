"""Saving beside the training: a copy of the state in host memory, and a thread that writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

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


def snapshot(state: Any) -> Any:
    """A copy of nested dicts, lists, tuples and tensors in host memory; of a sharded tensor, of the rows that are here.

    What is one tensor stays one.
    """
    return _copy(state, {})


def _copy(value: Any, seen: dict[Any, Tensor]) -> Any:
    if isinstance(value, DTensor) and value.numel():
        value = rows_of(value)
    if isinstance(value, Rows):
        return Rows(_copy(value.local, seen), value.start, value.shape)
    if isinstance(value, Tensor):
        place = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
        if not value.numel() or place not in seen:
            seen[place] = value.detach().to("cpu", copy=True)
        return seen[place]
    if isinstance(value, Mapping):
        return {key: _copy(item, seen) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item, seen) for item in value]
    if isinstance(value, tuple):
        return tuple(_copy(item, seen) for item in value)
    return value
