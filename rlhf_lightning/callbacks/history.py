"""Every logged number of a run as one CSV file that a spreadsheet, pandas or the report can read."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from rlhf_lightning.callbacks.steps import NewNumbers, steps_done
from rlhf_lightning.console.streams import append
from rlhf_lightning.errors import DiskError
from rlhf_lightning.evaluation.history import read_history

OnError = Literal["raise", "warn"]
Cell = float | str | None
FIXED_COLUMNS = ("step", "kind", "seconds")


class History(pl.Callback):
    """One CSV row per logged training step (a rollout in PPO) and one per validation.

    Columns are ``step`` (optimizer steps; rollouts in PPO), ``kind`` (``train`` or ``validation``), ``seconds`` since
    the fit began, then one column per tag. A tag that appears later adds a column and the file is rewritten; a number
    that was not logged is an empty cell. A row is on disk before its step is saved. Only rank 0 writes. A resumed fit
    keeps the rows up to the step it resumes from, without validations that came after its checkpoint.

    It stands behind the callbacks that log; what is logged after it looked is in the next row.

    Args:
        path: the CSV file; its folder is made. An older file is replaced unless the fit resumes.
        every_n_steps: training rows are written each time this many steps are done; None follows the Trainer's
            ``log_every_n_steps``.
        on_error: what a full or failing disk does: "raise" ends the run, "warn" goes on, keeps the rows in memory and
            writes them all with the next row. The file stays as it was in both cases.

    Raises:
        DiskError: a row could not be written.
        DataError: a resumed fit finds a file that is damaged.

    Attributes:
        rows: the rows of the file, ``{column: number, text or None}``, oldest first (rank 0; empty elsewhere).
    """

    def __init__(self, path: str | Path, every_n_steps: int | None = None, on_error: OnError = "raise") -> None:
        self.path = Path(path)
        self.every_n_steps = every_n_steps
        self.on_error = on_error
        self.rows: list[dict[str, Cell]] = []
        self._columns = list(FIXED_COLUMNS)
        self._new = NewNumbers()
        self._last_step = 0
        self._saved_validations: int | None = None  # rows of them, in the checkpoint that the fit resumes from
        self._started = 0.0
        self._whole = False  # whether the file holds all columns, and all rows but the newest
        self._told = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = steps_done(trainer)
        self.rows, self._columns, self._new = [], list(FIXED_COLUMNS), NewNumbers()
        if not trainer.is_global_zero:
            return
        if self._last_step and self.path.exists():
            written: list[dict[str, Any]] = [*read_history(self.path)]
            rows = [row for row in written if row.get("step", 0) <= self._last_step]
            later = _validations(rows)[self._saved_validations :] if self._saved_validations is not None else []
            self.rows = [row for row in rows if not any(row is other for other in later)]
            self._columns = list(dict.fromkeys([*FIXED_COLUMNS, *(tag for row in written for tag in row)]))
        offset = float(self.rows[-1]["seconds"] or 0) if self.rows else 0.0
        self._started = time.monotonic() - offset
        self._whole = self._told = False
        self._write()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = steps_done(trainer)
        every = self.every_n_steps or getattr(trainer, "log_every_n_steps", 0) or 1
        if step == self._last_step or step % every:  # inside gradient accumulation, or between logged steps
            return
        self._last_step = step
        self._add(trainer, step, "train", self._new.look(trainer))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._new.look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = self._new.look(trainer)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._add(trainer, steps_done(trainer), "validation", found)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": len(_validations(self.rows))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved_validations = state_dict["validations"]

    def _add(self, trainer: pl.Trainer, step: int, kind: str, metrics: dict[str, float]) -> None:
        if not trainer.is_global_zero or not metrics:
            return
        seconds = round(time.monotonic() - self._started, 3)
        row: dict[str, Cell] = {"step": step, "kind": kind, "seconds": seconds, **metrics}
        self.rows.append(row)
        new = [tag for tag in row if tag not in self._columns]
        self._columns += new
        self._whole = self._whole and not new
        self._write()

    def _write(self) -> None:
        """Append the newest row, or write the file again where it lacks a column or a row."""
        try:
            if self._whole:
                append(self.path, self._text(self.rows[-1:]))
            else:
                self._rewrite()
        except OSError as error:
            self._whole = False
            message = f"{self.path}: cannot be written ({error.strerror}); free the disk or choose another run_dir"
            if self.on_error == "raise":
                raise DiskError(message) from error
            if not self._told:
                rank_zero_warn(f"{message}. Training goes on, and the rows are written when there is room")
            self._told = True
        else:
            self._whole = True

    def _rewrite(self) -> None:
        """Write all rows beside the file and swap it in, so that a crash leaves the old file whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.unlink(missing_ok=True)  # of a run that was killed
        try:
            append(temporary, self._text([dict(zip(self._columns, self._columns, strict=True)), *self.rows]))
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _text(self, rows: Sequence[Mapping[str, Cell]]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns).writerows(rows)
        return text.getvalue()


def _validations(rows: list[dict[str, Cell]]) -> list[dict[str, Cell]]:
    return [row for row in rows if row["kind"] == "validation"]
