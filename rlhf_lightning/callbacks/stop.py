"""Stop a run that was told to, where it can go on later."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from rlhf_lightning import signals
from rlhf_lightning.callbacks.checkpoint import DurableCheckpoint
from rlhf_lightning.callbacks.steps import steps_done, steps_planned


class StopAtBoundary(pl.Callback):
    """Saves and stops at the end of the step in which a signal comes; a signal to one rank stops all of them.

    A step that takes longer than ``grace_period_seconds`` of `DurableCheckpoint` after the signal is given up at the
    next `signals.poll`; what was saved before stays. After the last step nothing is saved: the stage exports its model.
    Other callbacks see the step end as usual. It stands behind those that may end the run.

    Raises:
        signals.Stopped: before the next step begins.
    """

    def __init__(self) -> None:
        self._seen = -1
        self._signum = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where the run stands."""
        signals.begin()
        self._seen = steps_done(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree over ranks, and have the step saved."""
        step = steps_done(trainer)
        if step == self._seen:  # inside gradient accumulation
            return
        self._seen = step
        signum = (
            signals.received()
        )  # one that comes from here on waits for the next step: the others know nothing of it
        if trainer.world_size > 1:
            agreed = torch.tensor(signum, device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(agreed, reduce_op="max"))
            signals.adopt(signum)
        if signum and step != steps_planned(trainer):
            self._signum = signum
            for saver in trainer.checkpoint_callbacks:
                if isinstance(saver, DurableCheckpoint):
                    saver.ask()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop, once everybody has seen the step before."""
        if self._signum:
            for saver in trainer.checkpoint_callbacks:
                if isinstance(saver, DurableCheckpoint):
                    saver.finish(trainer)
            raise signals.Stopped(self._signum)

    def on_validation_batch_end(self, *given: Any) -> None:
        """Nothing is lost where validation ends early."""
        signals.poll()

    def on_predict_start(self, *given: Any) -> None:
        """From here on a signal waits for the next rows."""
        signals.begin()

    def on_predict_batch_start(self, *given: Any) -> None:
        """Nothing is saved while sampling."""
        signals.poll()
