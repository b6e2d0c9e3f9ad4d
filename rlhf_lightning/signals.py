"""SIGTERM and Ctrl-C as a wish to stop, which is looked at where stopping is safe. Standard library only.

The handler sets a flag and nothing else. `poll` stands between the pieces of long work (tokens, micro-batches, rows),
and `rlhf_lightning.callbacks.stop` looks at step boundaries, where a run can be saved.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_SECONDS = 1.0  # a batch system may tell every process of a job, and the launcher tells its ranks as well


class Stopped(SystemExit):
    """The run was asked to stop and did; exit code 143 for SIGTERM, 130 for SIGINT.

    Args:
        signum: the signal.
        note: what else to say.
    """

    def __init__(self, signum: int, note: str = "") -> None:
        super().__init__(128 + signum)
        self.signum, self.note = signum, note

    def __str__(self) -> str:
        return "; ".join(part for part in (f"stopped by {signal.Signals(self.signum).name}", self.note) if part)


class _Wish:
    """What this process was told."""

    signum = 0
    since = 0.0  # time.monotonic
    heard = 0.0  # when the handler ran first, 0 if never
    patience = 0.0  # seconds in which work that was begun may still end
    tells = True


_wish = _Wish()


@contextmanager
def watched(tells: bool = True) -> Iterator[None]:
    """Answer SIGTERM and SIGINT with the flag, and a second one at once with the end of the process.

    Outside of the main thread nothing happens, and a signal that is ignored stays so (SIGINT in background jobs of a
    shell). Handlers and flag are as before afterwards.

    Args:
        tells: say on standard error that the signal has come; ranks leave that to their launcher.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
    _wish.signum, _wish.heard, _wish.tells = 0, 0.0, tells
    for number in before:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _wish.signum = 0


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let work that was begun end within so many seconds of the signal: inside, `poll` waits for that long."""
    before, _wish.patience = _wish.patience, seconds
    try:
        yield
    finally:
        _wish.patience = before


def received() -> int:
    """The signal that asks this process to stop, 0 if none does."""
    return _wish.signum


def adopt(signum: int) -> None:
    """Take over a signal that another rank received; 0 is none."""
    if signum and not _wish.signum:
        _wish.signum, _wish.since = signum, time.monotonic()


def poll() -> None:
    """A place where unfinished work may be given up.

    Raises:
        Stopped: a signal has come, and the `patience` is over.
    """
    if _wish.signum and time.monotonic() - _wish.since >= _wish.patience:
        raise Stopped(_wish.signum, "the step in progress was given up" if _wish.patience else "")


def _handle(signum: int, frame: FrameType | None) -> None:
    if _wish.heard and time.monotonic() - _wish.heard >= SAME_SECONDS:
        os._exit(128 + signum)
    if not _wish.heard and _wish.tells:
        name = signal.Signals(signum).name
        os.write(2, f"{name}: stopping at the next safe place; a second signal ends the run at once\n".encode())
    _wish.heard = _wish.heard or time.monotonic()
    adopt(signum)
