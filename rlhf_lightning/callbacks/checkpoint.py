"""When a checkpoint is written, and which ones are kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from rlhf_lightning.callbacks.steps import steps_done, steps_planned
from rlhf_lightning.checkpoint.io import checkpoints
from rlhf_lightning.errors import ConfigError


class DurableCheckpoint(Checkpoint):
    """Saves the run at step boundaries under ``folder/step-N`` and keeps the newest ones.

    A step is an optimizer step, in PPO a rollout; Lightning's `ModelCheckpoint` counts optimizer steps, which in PPO
    pass the number it waits for. Nothing is ever saved in the middle of a step, nor at the last one, after which the
    stage exports its model. An older checkpoint is deleted only when the new one is complete.

    Args:
        folder: where to; `Trainer(plugins=[DurableCheckpointIO()])` writes folders rather than pickles.
        every_n_steps: save each time this many steps are done; None leaves it to the minutes.
        every_n_minutes: save at the first boundary after so many minutes; None leaves it to the steps.
        keep: how many to keep, at least 2, so that a damaged one does not cost the run.
        patience_seconds: how long a step may still take to be saved after the run was told to stop; a longer one is
            given up. Below the time your scheduler leaves between SIGTERM and SIGKILL.

    Raises:
        ConfigError: numbers that cannot work.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 10.0,
        keep: int = 2,
        patience_seconds: float = 5.0,
    ) -> None:
        if keep < 2:
            raise ConfigError(f"checkpoint.keep={keep}: at least 2, so that a damaged one does not cost the run")
        for name, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and value <= 0:
                raise ConfigError(f"checkpoint.{name}={value}: must be above 0, or null to leave it out")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self.patience_seconds = patience_seconds
        self._saved = 0
        self._since = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where the run stands."""
        self._saved, self._since = steps_done(trainer), time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due; all ranks agree on that."""
        step = steps_done(trainer)
        if step in (self._saved, steps_planned(trainer)):
            return
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        if not due and self.every_n_minutes is not None:
            due = trainer.strategy.broadcast(time.monotonic() - self._since >= 60 * self.every_n_minutes)
        if due:
            self.save(trainer)

    def save_new(self, trainer: pl.Trainer) -> None:
        """`save`, unless this moment is saved already."""
        if self._saved != steps_done(trainer):
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> Path:
        """Write a checkpoint of this moment, which must be a step boundary; returns its folder."""
        self._saved, self._since = steps_done(trainer), time.monotonic()
        path = self.folder / f"step-{self._saved:06d}"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for old in checkpoints(self.folder)[self.keep :]:
                trainer.strategy.remove_checkpoint(old)
        return path
