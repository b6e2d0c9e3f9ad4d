"""What Lightning does not promise to keep: where its loops stand, and what it does by itself.

Lightning works out from its counters where a checkpoint was written, and for some places its answer is wrong; so the
saver looks at the loops, and changes what it saves of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """The Trainer of a module; ``module.trainer`` raises where there is none, and there is no way to ask."""
    return module._trainer


def strategy_of(module: pl.LightningModule) -> Any:
    """The strategy of a module's Trainer; None where it has no Trainer."""
    trainer = trainer_of(module)
    return None if trainer is None else trainer.strategy


def saved_state(trainer: pl.Trainer) -> dict[str, Any]:
    """What a checkpoint of this moment would hold. Collective. ``save_checkpoint`` only writes it to a file."""
    return trainer._checkpoint_connector.dump_checkpoint()


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Let the Trainer install no signal handlers; there is no switch. Its own talks to the other ranks at any moment.

    Relies on the one method by which its connector installs them.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def replace_save(logger: Any, save: Callable[[], None]) -> None:
    """Have a logger, of whatever class the config names, save by another function."""
    logger.save = save


def share_among_all(strategy: ModelParallelStrategy) -> None:
    """Let all processes share the weights of a strategy that was given ``data_parallel_size=None``."""
    if strategy._data_parallel_size is None:
        strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


def validates_next(trainer: pl.Trainer) -> bool:
    """Whether a validation belongs to the step that is ending; the loop decides it only after the last hook."""
    loop = trainer.fit_loop.epoch_loop
    assert trainer.fit_loop._data_fetcher is not None
    return not loop.val_loop.skip and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def validate_now(trainer: pl.Trainer) -> None:
    """Run the validation of a fit, where there is one, before an epoch begins."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def ends_epoch(trainer: pl.Trainer) -> bool:
    """Whether the step that is ending is the last one of its epoch; ``is_last_batch`` knows of no limit of batches."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def stops_here(trainer: pl.Trainer) -> bool:
    """Whether a callback has ended the fit with the step that is ending: ``should_stop``, unless it is too early."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def with_validation_to_come(loops: dict[str, Any]) -> None:
    """Change the state of the fit loop, saved at the end of a step, in place: the run resumes with its validation.

    The step is done, and the validation stands as one that was interrupted in its first batch. Relies on the counters
    as the loops save them.
    """
    steps, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    for count in ("total", "current"):
        steps[count]["completed"] = steps[count]["processed"]
        validation[count] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    validation["is_last_batch"] = False


def with_epoch_done(loops: dict[str, Any]) -> None:
    """The same for the end of an epoch, all hooks of which were called: the run resumes with the next epoch."""
    for count in loops["epoch_progress"].values():
        count["completed"] = count["processed"]


def with_more_to_come(loops: dict[str, Any]) -> None:
    """The same for the end of the only epoch of a fit: the run resumes inside of it, where it has got more batches."""
    for count in loops["epoch_progress"].values():
        count["processed"] = count["completed"]
    loops["epoch_loop.batch_progress"]["is_last_batch"] = False


def with_other_accumulation(loops: dict[str, Any], before: int, now: int) -> None:
    """The same for a run that cuts each optimizer step into ``now`` micro-batches and not into ``before``, as one with
    another number of processes does; it was saved at the end of a step. Where the data stands is left to the data.
    """
    for count in (batches := loops["epoch_loop.batch_progress"])["total"], batches["current"]:
        last = count["ready"] - count["completed"]  # 1 where the last batch was not done with
        count |= {name: count[name] * now // before for name in ("ready", "started", "processed")}
        count["completed"] = count["ready"] - last
    loops["state_dict"].pop("combined_loader", None)


def begin_epoch(trainer: pl.Trainer) -> None:
    """At the start of a fit: do not go back into an epoch that is done, as a Trainer with ``max_steps`` does.

    Relies on how the two loops note that they are resumed; a Trainer cannot be given an epoch to begin with.
    """
    epoch = trainer.fit_loop.epoch_progress.current
    if epoch.completed == epoch.ready:
        trainer.fit_loop._restarting = trainer.fit_loop.epoch_loop.restarting = False
