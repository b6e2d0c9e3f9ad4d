"""Keep every rollout of PPO on disk, to look at and to learn from again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from rlhf_lightning.rollout.recorded import Call, write
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.scoring import completion_texts
from rlhf_lightning.types import Rollout


class RecordRollouts(pl.Callback):
    """Writes what each iteration has sampled and how it was scored as a verified folder, one for each rank.

    ``rlhf-lightning rollouts FOLDER`` shows them, and ``rollout=replay`` feeds them back. Samples for a greedy baseline
    and those that gave way to others are among them; what other callbacks sample is not. A run that goes on from a
    checkpoint writes the iterations behind it again.

    Args:
        folder: where to; None records nothing.
        every_n_rollouts: record only every so many rollouts, beginning with the first; replay needs all.
    """

    def __init__(self, folder: str | Path | None = None, every_n_rollouts: int = 1) -> None:
        require("every_n_rollouts", every_n_rollouts, at_least=1)
        self.folder = None if folder is None else Path(folder)
        self.every_n_rollouts = every_n_rollouts
        self._calls: list[tuple[Rollout, Call]] | None = None  # of this iteration; None: nobody asks

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Be told of rollouts by modules that sample."""
        if self.folder is not None and hasattr(pl_module, "recorder"):
            pl_module.recorder = self

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin an iteration, if it is its turn."""
        due = getattr(pl_module, "rollouts", 0) % self.every_n_rollouts == 0
        self._calls = [] if due and getattr(pl_module, "recorder", None) is self else None

    def sampled(self, rollout: Rollout, tokenizer: Any) -> None:
        """Take what was sampled."""
        if self._calls is None:
            return
        added = None
        if rollout.asked is not None:
            pairs = zip(rollout.rows, rollout.asked.rows, strict=True)
            added = [
                {key: now[key] for key in now if key not in asked or now[key] != asked[key]} for now, asked in pairs
            ]
        given = rollout.rows if rollout.asked is None else rollout.asked.rows
        call = Call(
            rollout.to("cpu"), [row["prompt"] for row in given], completion_texts(rollout, tokenizer), None, added
        )
        self._calls.append((rollout, call))

    def scored(self, rollout: Rollout, scores: Tensor) -> None:
        """Take what the scorer said of a rollout, of this very object."""
        for known, call in self._calls or ():
            if known is rollout:
                call.scores = scores.detach().float().cpu()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the iteration. One that was given up is written as far as it came."""
        calls, self._calls = self._calls, None
        if calls and self.folder is not None:
            exact = bool(getattr(pl_module.engine, "is_exact", False))
            write(self.folder, pl_module.rollouts, trainer.global_rank, [call for _, call in calls], exact=exact)
