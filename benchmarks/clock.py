"""The clock that runs inside a measured process, the same on both sides. Imports torch and nothing of this project."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Lap(NamedTuple):
    """Where the clock stood when an optimizer step ended."""

    wall: float  # seconds
    cpu: float  # seconds of all threads of this process
    counts: dict[str, int]
    phases: dict[str, tuple[float, float]]  # wall and CPU seconds
    memory: int  # bytes, the highest so far


class Clock:
    """Laps of optimizer steps, what was counted, and the seconds of each phase.

    Args:
        started: `time.time()` when the parent started this process, so that importing is seen.
        device: "cuda" waits for the device at every lap and reports its memory.
    """

    def __init__(self, started: float, device: str = "cpu") -> None:
        self.started, self.device = started, device
        self.laps: list[Lap] = []
        self.counts = dict.fromkeys(("tokens", "supervised", "positions_learned", "positions_read"), 0)
        self.answers: list[list[tuple[int, int]]] = [[]]  # per step: tokens of prompt and response
        self.phases: dict[str, tuple[float, float]] = {}
        self._open: list[str] = []
        self._since = (0.0, 0.0)
        self.imported = {"wall": time.time() - started, "cpu": time.process_time(), "memory": peak_memory("cpu")}
        self.begun = self.imported

    def watch_positions(self) -> None:
        """Count the positions that run through embeddings, pads included: in learning, and without gradients."""
        original, counts = nn.Embedding.forward, self.counts

        def forward(embedding: nn.Embedding, ids: Tensor) -> Tensor:
            counts["positions_learned" if torch.is_grad_enabled() else "positions_read"] += ids.numel()
            return original(embedding, ids)

        nn.Embedding.forward = forward  # type: ignore[method-assign]

    def count_batch(self, ids: Tensor, attention: Tensor | None, supervised: Tensor | None) -> None:
        """Count a batch: all positions where no mask says which are real."""
        self.counts["tokens"] += ids.numel() if attention is None else int(attention.sum())
        self.counts["supervised"] += 0 if supervised is None else int(supervised.sum())

    def count_answers(self, prompts: Tensor, responses: Tensor) -> None:
        """Keep the lengths of sampled answers: masks of prompts [B, P] and responses [B, T]."""
        pairs = zip(prompts.sum(1).tolist(), responses.sum(1).tolist(), strict=True)
        self.answers[-1] += [(int(p), int(r)) for p, r in pairs]

    def begin(self) -> None:
        """Everything is loaded, and the first step comes next."""
        self.begun = {
            "wall": time.time() - self.started,
            "cpu": time.process_time(),
            "memory": peak_memory(self.device),
        }

    def lap(self) -> None:
        """A step has ended."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        self._charge()
        now = (time.perf_counter(), time.process_time())
        self.laps.append(Lap(*now, dict(self.counts), dict(self.phases), peak_memory(self.device)))
        self.answers.append([])

    def enter(self, phase: str) -> None:
        """Charge this phase from now on; phases inside one another are charged once."""
        self._charge()
        self._open.append(phase)

    def leave(self) -> None:
        """Back to the phase before."""
        self._charge()
        self._open.pop()

    def time_method(self, owner: Any, method: str, phase: str) -> None:
        """Charge all calls of a method to a phase."""
        timed: Callable[..., Any] = Phase(self, phase)(getattr(owner, method))
        setattr(owner, method, timed)

    def result(self, warm_up: int) -> dict[str, Any]:
        """What the steps after ``warm_up`` took, and what starting took."""
        first, last = self.laps[warm_up - 1], self.laps[-1]
        phases = {
            name: {kind: last.phases[name][i] - first.phases.get(name, (0.0, 0.0))[i] for i, kind in enumerate(KINDS)}
            for name in last.phases
        }
        return {
            "steps": len(self.laps) - warm_up,
            "wall": last.wall - first.wall,
            "cpu": last.cpu - first.cpu,
            "step_cpu": [b.cpu - a.cpu for a, b in zip(self.laps[warm_up - 1 :], self.laps[warm_up:], strict=False)],
            "imported": self.imported,
            "begun": self.begun,
            "counts": {name: count - first.counts[name] for name, count in last.counts.items()},
            "counts_of_all_steps": last.counts,
            "answers": [pair for step in self.answers[warm_up : len(self.laps)] for pair in step],
            "phases": phases,
            "peak_memory": last.memory,
        }  # fmt: skip

    def _charge(self) -> None:
        if self.device == "cuda" and self._open:
            torch.cuda.synchronize()
        now = (time.perf_counter(), time.process_time())
        if self._open:
            wall, cpu = self.phases.get(self._open[-1], (0.0, 0.0))
            self.phases[self._open[-1]] = (wall + now[0] - self._since[0], cpu + now[1] - self._since[1])
        self._since = now


KINDS = ("wall", "cpu")


class Phase(ContextDecorator):
    """Charge a block, or the calls of a function, to a phase."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name = clock, name

    def __enter__(self) -> None:
        self.clock.enter(self.name)

    def __exit__(self, *exception: object) -> None:
        self.clock.leave()


def peak_memory(device: str) -> int:
    """Bytes: the highest resident set so far, or on CUDA the highest allocation."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:  # unlike ru_maxrss this starts again with a new program
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_job(path: str) -> dict[str, Any]:
    """The job of this process; sets its number of threads."""
    job: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    return job


def write_result(job: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Leave the result where the parent looks for it, and end without the interpreter's clean-up."""
    Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)
