"""What callbacks ask the Trainer: how many steps are done, and what was logged in the last one."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

UNPENALISED_KL = 3.5  # nats per response; in benchmarks.learning the judge turns at 4.1 to 13


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
    """The last value of everything that was logged. Call it on every rank: reading may reduce over ranks."""
    return {tag: float(value) for tag, value in trainer.callback_metrics.items()}


class NewNumbers:
    """What was logged since the last look; ``trainer.callback_metrics`` keeps a number until its tag is logged again.

    Lightning writes no number over another: one that is logged again is another tensor, also where it is equal.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}

    def look(self, trainer: pl.Trainer) -> dict[str, float]:
        """Tags and numbers. Call it on every rank: reading may reduce over ranks."""
        before, self._before = self._before, dict(trainer.callback_metrics)
        return {t: float(v) for t, v in self._before.items() if t not in before or not v.is_set_to(before[t])}


def unpenalised_limit(pl_module: Any) -> float | None:
    """Nats per response beyond which a learned score is not to be believed, if nothing else bounds KL; else None."""
    controller = getattr(pl_module, "kl_controller", None)
    exploits = getattr(getattr(pl_module, "scorer", None), "learned", False)
    return UNPENALISED_KL if exploits and controller is not None and controller.coef == 0.0 else None
