"""When a checkpoint is written, and which ones are kept."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from rlhf_lightning.callbacks.history import OnError
from rlhf_lightning.callbacks.steps import steps_done, steps_planned
from rlhf_lightning.checkpoint.background import Copies, Writing
from rlhf_lightning.checkpoint.io import END, DurableCheckpointIO, expired
from rlhf_lightning.checkpoint.places import foreign
from rlhf_lightning.checkpoint.processes import Processes, together
from rlhf_lightning.errors import CheckpointError, ConfigError, DiskError
from rlhf_lightning.private_api.lightning import (
    begin_epoch,
    ends_epoch,
    saved_state,
    stops_here,
    validates_next,
    with_epoch_done,
    with_more_to_come,
    with_validation_to_come,
)
from rlhf_lightning.rules.ranges import require

LAST_SECONDS = 300.0  # in which what was begun may still be written when an error has ended the run
COST = 20  # times what a save took must pass until a long step is saved again


class DurableCheckpoint(Checkpoint):
    """Saves the run at step boundaries under ``folder/step-N`` and keeps the newest ones.

    A step is an optimizer step, in PPO a rollout; Lightning's `ModelCheckpoint` counts optimizer steps, which in PPO
    pass the number it waits for. Nothing is ever saved in the middle of a step. The last one, after which the stage
    exports its model, is saved as ``folder/end``: only a run that is made longer goes on from there. An older
    checkpoint is deleted only when the new one is complete.

    A step that took longer than ``grace_period_seconds``, and that a signal may therefore give up, is saved too, where
    that costs little: the first of a fit, and later ones 20 times as long after the last save as that took.

    With ``asynchronous`` a save copies what changes into host memory, and a thread hashes and writes it while the run
    goes on. The next save, a signal and the end of the fit wait for it; an error is raised at the end of the step in
    which it comes, on all ranks. The memory is kept for the next save until the fit ends: only the first one waits for
    fresh memory, which costs more than the copy.

    Args:
        folder: where to; a Trainer without an IO plugin is given `DurableCheckpointIO`, which writes folders.
        every_n_steps: save each time this many steps are done; None leaves it to the minutes.
        every_n_minutes: save at the first boundary after so many minutes; None leaves it to the steps.
        keep: how many to keep, at least 2, so that a damaged one does not cost the run.
        at_end: save the last step too, so that a finished stage can be made longer; a disk that does not take it is
            warned of.
        on_error: what a full or failing disk does: "raise" ends the run, "warn" goes on and tries again when the next
            checkpoint is due. The older ones stay in both cases.
        asynchronous: write beside the training. From the first save on it takes as much host memory as the checkpoint,
            or this rank's part of it, which is why it is not the default: no save should be what a run ends for.
        grace_period_seconds: how long a step may still take to be saved after the run was told to stop; a longer one is
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
        at_end: bool = True,
        on_error: OnError = "raise",
        asynchronous: bool = False,
        grace_period_seconds: float = 5.0,
    ) -> None:
        require("keep", keep, at_least=2, why="so that a damaged one does not cost the run")
        require("every_n_steps", every_n_steps, above=0)
        require("every_n_minutes", every_n_minutes, above=0)
        require("grace_period_seconds", grace_period_seconds, at_least=0)
        if on_error not in get_args(OnError):
            raise ConfigError(f"checkpoint.on_error={on_error}: choose raise or warn")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self.at_end = at_end
        self.on_error = on_error
        self.asynchronous = asynchronous
        self.grace_period_seconds = grace_period_seconds
        self._ranks = Processes()
        self._writing: Writing | None = None
        self._copies = Copies()
        self._good: set[Path] = set()  # checkpoints that are whole
        self._left: set[Path] = set()  # and that are not, and stay
        self._saved = self._seen = 0  # steps
        self._postponed = self._validates = self._epoch_done = self._ended = self._asked = self._in_step = False
        self._since = self._began = time.monotonic()
        self._step_took = self._save_took = 0.0  # seconds; the save is the last of this fit, 0 if there was none

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write folders where the Trainer was given no plugin that says otherwise, before a checkpoint is read."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's default, a pickle
            trainer.strategy.checkpoint_io = DurableCheckpointIO()
        self._ranks = together()
        if isinstance(io := trainer.strategy.checkpoint_io, DurableCheckpointIO):
            io.readers = self._ranks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where the run stands.

        Raises:
            CheckpointError: the run holds state that could not be saved; better to hear it now than at the first save.
        """
        io = trainer.strategy.checkpoint_io
        if isinstance(io, DurableCheckpointIO):
            state = saved_state(trainer)  # collective
            if trainer.is_global_zero:
                io.check(state)
        begin_epoch(trainer)
        self._saved = self._seen = steps_done(trainer)
        self._since, self._save_took = time.monotonic(), 0.0
        self._in_step = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A step begins with the first of its micro-batches."""
        if not self._in_step:
            self._began, self._in_step = time.monotonic(), True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where a step ends. Lightning calls savers last: the row of the step is in the history by then."""
        if steps_done(trainer) == self._seen:  # inside gradient accumulation
            return
        self._seen = steps_done(trainer)
        if self._writing is not None and trainer.strategy.reduce_boolean_decision(self._writing.done()):
            self.finish(trainer)
        self._step_took, self._in_step = time.monotonic() - self._began, False
        self._validates = validates_next(trainer)
        self._postponed = self._validates or ends_epoch(trainer)
        if not self._postponed or (self._asked and self._validates):
            self._save_if_due(trainer)
        self._validates = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a step that ends with a validation only now, with what the validation found."""
        if self._postponed and not ends_epoch(trainer):
            self._postponed = False
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a step that ends its epoch only now: other callbacks look here, and may stop the run."""
        if self._postponed:
            self._postponed = False
            self._epoch_done = True
            self._save_if_due(trainer)
            self._epoch_done = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is left to write when the fit is over, and no memory kept to copy into."""
        self.finish(trainer)
        self._copies.clear()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Complete what was begun, if it takes no longer than `LAST_SECONDS`; the other ranks may be gone."""
        if self._writing is not None:
            self._writing.done(LAST_SECONDS)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tell Lightning what comes next when the run goes on."""
        if self._validates:
            with_validation_to_come(checkpoint["loops"]["fit_loop"])
        elif self._ended and not pl_module.automatic_optimization:
            with_more_to_come(checkpoint["loops"]["fit_loop"])
        elif self._epoch_done:
            with_epoch_done(checkpoint["loops"]["fit_loop"])

    def ask(self) -> None:
        """Save the step that is ending, whether one is due or not, and before its validation, which may be long."""
        self._asked = True

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        """Save at a step boundary where the number of steps or the time says so; all ranks agree on that."""
        step = steps_done(trainer)
        if step == steps_planned(trainer) or stops_here(trainer):
            self.finish(trainer)  # before other callbacks export
        if step == self._saved or stops_here(trainer):
            return
        if step == steps_planned(trainer):
            if self.at_end and self._epoch_done and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self._save_end(trainer)
            return
        due = self._asked or (self.every_n_steps is not None and step % self.every_n_steps == 0)
        if due or trainer.strategy.broadcast(self._time_says_so()):
            self.save(trainer)

    def _save_end(self, trainer: pl.Trainer) -> None:
        self._ended = True
        self._begin(trainer, self.folder / END)
        self._ended = False
        self.finish(trainer)

    def _time_says_so(self) -> bool:
        since = time.monotonic() - self._since
        long, cheap = self._step_took > self.grace_period_seconds, since >= COST * self._save_took
        return (self.every_n_minutes is not None and since >= 60 * self.every_n_minutes) or (long and cheap)

    def save(self, trainer: pl.Trainer) -> Path | None:
        """Write a checkpoint of this moment, which must be a step boundary, or begin to; returns its folder.

        None means that the disk did not take it and `on_error` is "warn".
        """
        self.finish(trainer)
        self._saved, self._since = steps_done(trainer), time.monotonic()
        path = self.folder / f"step-{self._saved:06d}"
        try:
            self._begin(trainer, path)
            return path if self.asynchronous or self.finish(trainer) else None
        finally:
            self._save_took = time.monotonic() - self._since

    def _begin(self, trainer: pl.Trainer, path: Path) -> None:
        state = saved_state(trainer)  # collective
        beside = self.asynchronous and not self._ended
        state = self._copies.of(state) if beside else state
        self._writing = Writing(path, partial(trainer.strategy.save_checkpoint, state, path), beside)

    def finish(self, trainer: pl.Trainer) -> bool:
        """Wait for what is being written, on all ranks; False where the disk did not take it. Collective.

        Raises:
            DiskError: the disk did not take it, and `on_error` is "raise".
            NumericalError: a number in it is not finite.
        """
        if self._writing is None:
            return True
        writing, self._writing = self._writing, None
        error = self._ranks.first(writing.error())
        if isinstance(error, DiskError) and writing.path.name == END:
            rank_zero_warn(f"the end is not saved, so that the stage cannot be made longer: {error}")
        elif isinstance(error, DiskError) and self.on_error == "warn":
            rank_zero_warn(f"no checkpoint at step {self._saved}, training goes on: {error}")
        elif error is not None:
            raise error
        elif writing.path.name != END:
            self._clear_up(trainer, writing.path)
        return error is None

    def _clear_up(self, trainer: pl.Trainer, new: Path) -> None:
        """Delete what is not needed any more, now that ``new`` is complete."""
        self._good.add(new)
        if trainer.is_global_zero:
            for old in expired(self.folder, self._saved, self.keep, self._is_good):
                self._remove(trainer, old)

    def _is_good(self, path: Path) -> bool:
        """Whether this process has written a checkpoint, or has found it whole."""
        if path not in self._good and not foreign(path):
            self._good.add(path)
        return path in self._good

    def _remove(self, trainer: pl.Trainer, path: Path) -> None:
        """Delete a checkpoint, unless it is damaged: it may still be worth a look."""
        try:
            trainer.strategy.remove_checkpoint(path)
        except CheckpointError as error:
            if path not in self._left:
                rank_zero_warn(f"an old checkpoint is not deleted: {error}")
            self._left.add(path)
