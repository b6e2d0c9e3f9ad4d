"""End a fit when a number no longer gets better, in PPO too."""

from __future__ import annotations

import logging
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping

from rlhf_lightning.callbacks.steps import NewNumbers
from rlhf_lightning.rules.ranges import require

log = logging.getLogger(__name__)


class StopEarly(EarlyStopping):
    """Lightning's `EarlyStopping` that looks after each rollout of PPO, and after each validation of the other stages.

    Lightning's own looks after each epoch, and PPO is one epoch; and it ends a stage with an error that does not log
    the number. Here such a stage says so at its end and runs to it. A rollout that does not log the number anew is no
    look: one that was given up, or one between two that a monitor scores.

    Args:
        monitor: tag, such as ``objective/kl`` or ``val/loss``.
        mode: ``min`` where lower is better.
        min_delta: a change by less is none.
        patience: looks without one, after which the fit ends.
        stopping_threshold: end it as soon as the number is better than this.
        divergence_threshold: end it as soon as the number is worse than this.
        check_finite: end it when the number is not finite.

    Raises:
        ConfigError: ``patience`` is below 1, or ``min_delta`` below 0.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"] = "min",
        min_delta: float = 0.0,
        patience: int = 3,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = True,
    ) -> None:
        require("patience", patience, at_least=1)
        require("min_delta", min_delta, at_least=0)
        super().__init__(
            monitor,
            mode=mode,
            min_delta=min_delta,
            patience=patience,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_finite=check_finite,
            check_on_train_epoch_end=False,
        )
        self._new = NewNumbers()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.automatic_optimization:  # else a batch is a rollout
            return
        if self.monitor in self._new.look(trainer):
            self.on_validation_end(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(tag for tag in trainer.callback_metrics if not tag.startswith("perf/")))
            log.info(
                "StopEarly: %s is not logged here, so nothing could end early; logged are %s", self.monitor, logged
            )
