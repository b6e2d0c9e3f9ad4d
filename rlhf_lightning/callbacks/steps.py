"""What callbacks ask the Trainer: how many steps are done, and what was logged in the last one."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


def steps_done(trainer: pl.Trainer) -> int:
    """Optimizer steps of automatic optimisation; finished rollouts of manual optimisation. Survives a resume.

    In manual optimisation ``trainer.global_step`` counts the optimizer steps inside a rollout, which is another axis.
    """
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return progress.total.processed


def steps_planned(trainer: pl.Trainer) -> int | None:
    """Steps, counted as `steps_done` counts them, after which the fit ends; None when nobody can say."""
    if trainer.lightning_module.automatic_optimization:
        planned = trainer.estimated_stepping_batches
    else:
        planned = trainer.num_training_batches * (trainer.max_epochs or 1)
    return None if planned <= 0 or planned == float("inf") else int(planned)


def gave_up(module: Any) -> bool:
    """Whether the step just ended had to be given up before there was anything to look at."""
    return getattr(module, "gave_up", False)


def logged_scalars(trainer: pl.Trainer) -> dict[str, float]:
    """Everything the module has logged so far, as floats. Call it on every rank: reading may reduce over ranks."""
    return {tag: float(value) for tag, value in trainer.callback_metrics.items()}
