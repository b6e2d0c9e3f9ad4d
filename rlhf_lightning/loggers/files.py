"""Loggers' files: TensorBoard's are no reason to end a run, and no table of numbers is deleted for a new one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from rlhf_lightning.checkpoint.places import free_name
from rlhf_lightning.private_api.lightning import replace_save
from rlhf_lightning.private_api.tensorboard import open_again, records_written_by

log = logging.getLogger(__name__)


def lasting(logger: Any) -> Any:
    """Let a `TensorBoardLogger` lose what the disk does not take, after one warning in silence.

    A ``metrics.csv`` that is there already gets another name, since a `CSVLogger` begins by deleting it.

    Args:
        logger: any; others than TensorBoard's are returned as they are.

    Returns:
        the logger, or False where not even its folder can be made: the Trainer then has none.
    """
    if isinstance(logger, CSVLogger):
        _keep(Path(logger.log_dir) / "metrics.csv")
    if not isinstance(logger, TensorBoardLogger):
        return logger
    try:
        event_writer(logger)
    except OSError as error:
        _tell(logger.log_dir, error)
        return False
    save = logger.save

    def save_what_fits() -> None:
        """As Lightning, which writes ``hparams.yaml`` where there is no file of that name: perhaps through a link."""
        try:
            if not os.path.lexists(os.path.join(logger.log_dir, logger.NAME_HPARAMS_FILE)):
                save()
        except OSError as error:
            _tell(logger.log_dir, error)

    replace_save(logger, save_what_fits)
    return logger


def event_writer(logger: TensorBoardLogger) -> Any:
    """The writer of a logger with its thread, made again if a fit has closed it: records that do not fit are lost."""
    with records_written_by(partial(_Records, logger.log_dir)):
        writer = logger.experiment
        open_again(writer)
        return writer


def resume_at(writer: Any, step: int) -> None:
    """Have readers drop all that an earlier process has written into the folder of a writer for ``step`` and later."""
    writer.file_writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))


class CurvesOver:
    """Curves over another count than the steps of a fit: the run ``by_COUNT`` below that of a TensorBoard logger.

    It is a folder of its own, since readers drop later steps of all tags alike where a fit resumes, and its tags begin
    with its name, since TensorBoard would draw equal ones into one chart. What the disk does not take is lost, after
    one warning.

    Args:
        logger: of the fit.
        count: what is counted.
        done: the count so far; points behind it, of an earlier process, are taken back.
    """

    def __init__(self, logger: TensorBoardLogger, count: str, done: int) -> None:
        self.name = f"by_{count}"
        folder = os.path.join(logger.log_dir, self.name)
        self._writer: SummaryWriter | None = None
        try:
            with records_written_by(partial(_Records, folder)):
                self._writer = SummaryWriter(folder)
                resume_at(self._writer, done + 1)
        except OSError as error:
            _tell(folder, error)

    def add(self, numbers: Mapping[str, float], count: int) -> None:
        """A point of each curve."""
        if self._writer is None:
            return
        for tag, number in numbers.items():
            self._writer.add_scalar(f"{self.name}/{tag}", number, count)

    def close(self) -> None:
        """Write what is still on its way."""
        if self._writer is not None:
            self._writer.close()


@rank_zero_only
def _keep(file: Path) -> None:
    if os.path.lexists(file):
        kept = free_name(file, "before")
        file.rename(kept)
        log.warning(f"{file}: was there already, and is {kept.name} now")


class _Records(RecordWriter):
    """Writes records until one fails: half a record would make the rest unreadable."""

    def __init__(self, folder: str, writer: Any) -> None:
        super().__init__(writer)
        self._folder = folder
        self._lost = False

    def write(self, data: bytes) -> None:
        self._try(super().write, data)

    def flush(self) -> None:
        self._try(super().flush)

    def close(self) -> None:
        self._try(super().close)

    def _try(self, act: Any, *given: Any) -> None:
        if not self._lost:
            try:
                act(*given)
            except OSError as error:
                self._lost = True
                _tell(self._folder, error)


def _tell(place: str, error: OSError) -> None:
    log.warning(f"{place}: no more is written for TensorBoard ({error.strerror}); training goes on")
