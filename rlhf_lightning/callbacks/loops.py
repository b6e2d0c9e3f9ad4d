"""Lightning's loops at the end of a step: what follows there, and how to save it so that a run goes on with just that.

Lightning works out from its counters where a checkpoint was written, and for some places its answer is wrong.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


def validates_next(trainer: pl.Trainer) -> bool:
    """Whether a validation belongs to the step that is ending."""
    loop = trainer.fit_loop.epoch_loop
    assert trainer.fit_loop._data_fetcher is not None
    return not loop.val_loop.skip and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def ends_epoch(trainer: pl.Trainer) -> bool:
    """Whether the step that is ending is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def stops_here(trainer: pl.Trainer) -> bool:
    """Whether a callback has ended the fit with the step that is ending."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def with_validation_to_come(loops: dict[str, Any]) -> None:
    """Change the state of the fit loop, saved at the end of a step, in place: the run goes on with its validation.

    The step is done, and the validation stands as one that was interrupted in its first batch.
    """
    steps, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    for count in ("total", "current"):
        steps[count]["completed"] = steps[count]["processed"]
        validation[count] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    validation["is_last_batch"] = False


def with_epoch_done(loops: dict[str, Any]) -> None:
    """The same for the end of an epoch, all hooks of which were called: the run goes on with the next epoch."""
    for count in loops["epoch_progress"].values():
        count["completed"] = count["processed"]


def begin_epoch(trainer: pl.Trainer) -> None:
    """At the start of a fit: do not go back into an epoch that is done, as a Trainer with ``max_steps`` does."""
    epoch = trainer.fit_loop.epoch_progress.current
    if epoch.completed == epoch.ready:
        trainer.fit_loop._restarting = trainer.fit_loop.epoch_loop.restarting = False
