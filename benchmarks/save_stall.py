"""How long a save holds up a run, at once and beside the training: python -m benchmarks.save_stall [--ranks 2]

PPO with a critic of its own on the random Llama of 71 million parameters of `benchmarks.sharded_loading`, a save after
every second step. Prints medians: seconds of a step, of a save as the run sees it, and of the step after it, beside
which a thread may write; of step and save also those that the processor worked for the run, which other programs on the
machine change less.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.sharded_loading import prepare, resident, run_of
from rlhf_lightning.callbacks import DurableCheckpoint

SAVES, ROWS, TOKENS = 5, 8, 12


def now() -> tuple[float, float]:
    """Seconds on the clock, and of work of this thread."""
    return time.monotonic(), time.thread_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Seconds of both since `now`."""
    clock, worked = now()
    return clock - start[0], worked - start[1]


def medians(times: list[tuple[float, float]]) -> list[float]:
    """Of both."""
    return [statistics.median(column) for column in zip(*times, strict=True)]


class Timed(DurableCheckpoint):
    """Saves after every second step, and notes how long steps and saves take."""

    def __init__(self, folder: Path, asynchronous: bool) -> None:
        given: dict[str, Any] = {"every_n_steps": 2, "every_n_minutes": None, "at_end": False}
        super().__init__(folder, **given, asynchronous=asynchronous, grace_period_seconds=1e6)  # no step is a long one
        self.saves: list[tuple[float, float]] = []
        self.steps: list[tuple[float, float]] = []
        self.peak = 0.0
        self._start = (0.0, 0.0)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._start = now()
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(since(self._start))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def save(self, trainer: Any) -> Path | None:
        start, (before, _) = now(), resident()
        path = super().save(trainer)
        self.saves.append(since(start))
        self.peak = max(self.peak, resident()[1] - before)
        return path


def work(folder: Path, ranks: int, asynchronous: bool) -> None:
    """One rank of a run."""
    torch.set_num_threads(1)
    saver = Timed(folder / f"saved-{ranks}-{asynchronous}", asynchronous)
    trainer, module, data = run_of(folder, ranks, [saver], rollouts=2 * SAVES + 3, rows=ROWS, tokens=TOKENS)
    trainer.fit(module, datamodule=data)
    after, plain = saver.steps[2::2], saver.steps[3::2]  # the first steps make the optimizer's state
    (step, worked), (save, busy) = medians(plain), medians(saver.saves[1:])
    how = "beside the training" if asynchronous else "at once"
    text = (
        f"{ranks} x, {how}: step {step:.2f} s, save {save:.3f} s ({100 * save / step:.1f} % of a step; of work "
        f"{worked:.2f} and {busy:.3f} s, {100 * busy / worked:.1f} %), step after it {medians(after)[0]:.2f} s, "
        f"{len(saver.saves) - 1} saves, {saver.peak:.0f} MiB more at a save"
    )
    (folder / f"{ranks}.{trainer.global_rank}.{asynchronous}").write_text(text)


def main() -> None:
    """Run both ways, and print what each process noted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--asynchronous", action="store_true")
    given = parser.parse_args()
    if given.work:
        return work(given.work, given.ranks, given.asynchronous)
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for more in ([], ["--asynchronous"]):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
            command = [
                sys.executable,
                "-m",
                "benchmarks.save_stall",
                "--work",
                name,
                "--ranks",
                str(given.ranks),
                *more,
            ]
            places = [
                {"WORLD_SIZE": str(given.ranks), "LOCAL_RANK": str(r), "RANK": str(r)} for r in range(given.ranks)
            ]
            running = [subprocess.Popen(command, env={**shared, **place}) for place in places]
            if sum(process.wait() for process in running):
                sys.exit("a run failed")
            for rank in range(given.ranks):
                print((Path(name) / f"{given.ranks}.{rank}.{bool(more)}").read_text(), flush=True)


if __name__ == "__main__":
    main()
