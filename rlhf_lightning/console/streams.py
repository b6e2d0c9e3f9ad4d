"""The console and the log file: quiet about other libraries' advice, and never a reason to lose a run.

Standard library only.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import stat
import sys
import warnings
from typing import Any, TextIO

from rlhf_lightning import signals
from rlhf_lightning.console.display import learned, plain
from rlhf_lightning.console.redaction import redact_text

HELD_SECONDS = 1.0  # without a reader, after which a run that is told to stop no longer waits for one
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # otherwise tokenizers warns at every fork
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # read by TensorBoard's TensorFlow stub
}
# Children of the loggers Lightning configures when imported; a level set here before survives that.
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.distributed",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
)
_WARNINGS = (
    r".*does not have many workers.*",  # our loaders read from memory
    r".*available but not used.*",  # the accelerator was chosen on purpose
    r"Checkpoint directory .* exists and is not empty",
    r"Experiment logs directory .* exists and is not empty",  # what is there gets another name before
    r"You passed in a `val_dataloader` but have no `validation_step`.*",  # PPO is judged by the evaluate stage
    r"predict returned None.*",  # answers are collected by the module
    r"It is recommended to use `self\.log\(.*sync_dist=True.*",  # what we log is summed over ranks already
    r".*LeafSpec.*",  # Lightning uses an API that torch announces to change
)


def quiet() -> None:
    """Silence tips, download bars and known harmless warnings. Call it before torch or Lightning is imported.

    A variable of the environment that is already set stays as it is.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def unbreakable() -> None:
    """Let the process's own standard output and error lose what they cannot take rather than raise.

    A pipe that nobody reads any more, a full disk and a terminal that is gone swallow the text; characters that the
    terminal does not know are written as escapes. Streams that were closed lead nowhere, so that no file of the run can
    take their place. Streams that other code has put in place of ours stay as they are.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _nowhere(descriptor)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.stderr, 2)


def say(text: str, stream: TextIO | None = None, preview: bool = False) -> None:
    """Show a text of ours and a line break, without secrets and with control characters as escapes.

    What the console cannot take is lost.

    Args:
        text: one line or several.
        stream: None is standard output.
        preview: show the marks of what is learned.
    """
    stream = stream or sys.stdout
    shown = plain(redact_text(text))
    try:
        stream.write(f"{learned(shown, stream.isatty()) if preview else shown}\n")
        stream.flush()
    except (OSError, ValueError, AttributeError):  # broken, closed, or not there: streams that are not ours
        return


class Formatter(logging.Formatter):
    """Log records as text, on the console and in the log file: without secrets, control characters as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """As in `logging.Formatter`."""
        return plain(redact_text(super().format(record)))


class LogFile(logging.Handler):
    """A log file that is a reason to end nothing: a record that it cannot take is lost, after one warning in silence.

    Args:
        filename: where; its folder must be there. The file is made with the first record.
    """

    def __init__(self, filename: str) -> None:
        super().__init__()
        self._path = os.path.abspath(filename)
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Append the record, or warn once."""
        try:
            append(self._path, f"{self.format(record)}\n")
        except OSError as error:
            if not self._told:
                say(f"{self._path}: not all that is logged is there ({error.strerror}); the run goes on", sys.stderr)
            self._told = True
        except Exception:
            self.handleError(record)


def append(path: str | os.PathLike[str], text: str) -> None:
    """Add to the end of a file, all or nothing; it is made if need be.

    Raises:
        OSError: not possible, or the file is a link, has several names, or is no file; it is as it was before.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not make us wait
    descriptor = os.open(path, flags, 0o666)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode) or before.st_nlink != 1:
            raise OSError(errno.EPERM, "it is a link or no file", str(path))
        data = text.encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            os.ftruncate(descriptor, before.st_size)
            raise
    finally:
        os.close(descriptor)


class _Lasting(io.FileIO):
    """Loses what its descriptor does not take."""

    def write(self, data: Any) -> int:
        """Write some of it; a terminal that is held must not keep a run from saving."""
        piece = bytes(data[: select.PIPE_BUF])  # so much goes without waiting where `select` says so
        try:
            while not select.select([], [self], [], HELD_SECONDS)[1]:
                if signals.received():
                    _nowhere(self.fileno())
            return super().write(piece) or 0
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # a disk may have room again
                _nowhere(self.fileno())  # libraries and children that write there by themselves must not fail either
            return len(piece)


class _Discreet(io.TextIOWrapper):
    """Blanks out secrets in all that is printed, tracebacks and the lines of other libraries included."""

    def write(self, text: str) -> int:
        """Write without what `redact_text` knows."""
        super().write(redact_text(text))
        return len(text)


def _lasting(stream: TextIO | None, number: int) -> TextIO:
    encoding = "utf-8" if stream is None else stream.encoding
    if stream is not None:
        stream.flush()
    buffer = io.BufferedWriter(_Lasting(number, "w", closefd=False))
    return _Discreet(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)


def _nowhere(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
