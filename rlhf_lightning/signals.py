"""Signals as a wish to stop, which is looked at where stopping is safe. Standard library only.

The handler sets a flag and nothing else. `poll` stands between the pieces of long work (tokens, micro-batches, rows),
and `rlhf_lightning.callbacks.stop` looks at step boundaries, where a run can be saved. As long as a command has nothing
to lose, it ends at once instead.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import ClassVar

PRESSING = (signal.SIGTERM, signal.SIGINT)  # of which a second one of the same kind ends the process at once
# The terminal is gone, the time of a job is nearly over (Slurm's `--signal=USR1@60`, USR2 of LSF and SGE), the limit on
# processor time is reached: systems send these again and again, and one kind after the other.
SIGNALS = (*PRESSING, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_NOTHING = "nothing had begun"
SAME_SECONDS = 1.0  # a batch system may tell every process of a job, and the launcher tells its ranks as well


class Stopped(SystemExit):
    """The run was asked to stop and did; exit code 128 + signal: 143 for SIGTERM, 130 for SIGINT.

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
    heard: ClassVar[dict[int, float]] = {}  # when each of `PRESSING` came first, time.monotonic
    grace_period = 0.0  # seconds in which work that was begun may still end
    tells = True
    at_once = False  # nothing could be lost
    left = _NOTHING  # what there is when a signal ends the process at once
    folder = ""  # made for the run, and still empty
    report: int | None = None  # descriptor


class Unwanted(Exception):
    """Nobody waits any more for what this thread does."""


_wish = _Wish()
_thread = threading.local()


@contextmanager
def watched(tells: bool = True, at_once: bool = False, report: int | None = None) -> Iterator[None]:
    """Answer signals with the flag, and a second SIGTERM or a second SIGINT at once with the end of the process.

    Outside of the main thread nothing happens, and a signal that is ignored stays so (SIGINT in background jobs of a
    shell, SIGHUP under nohup). Handlers and flag are as before afterwards.

    Args:
        tells: say on standard error that the signal has come; ranks leave that to their launcher.
        at_once: until `begin` is called, end the process with the first signal.
        report: descriptor that gets a line break when `begin` is called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
    outer = _wish.at_once
    _wish.signum, _wish.tells, _wish.at_once, _wish.report = 0, tells, at_once or outer, report
    _wish.left = _NOTHING
    _wish.heard.clear()
    for number in before:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _wish.signum, _wish.at_once, _wish.folder, _wish.report = 0, outer and _wish.at_once, "", None


def begin() -> None:
    """From here on there is something to lose: a signal waits for a safe place."""
    _wish.at_once = False
    if _wish.report is not None:
        os.write(_wish.report, b"\n")
        _wish.report = None


def leave_jobs_to(launcher: str) -> None:
    """Name what starts the jobs of this command in other processes: a signal ends the command and not the jobs."""
    _wish.left = f"jobs that {launcher} has started may go on"


def would_leave(folder: str) -> None:
    """Name a folder that is removed, if it is empty then, when a signal ends the process before `begin`."""
    _wish.folder = folder


@contextmanager
def grace_period(seconds: float) -> Iterator[None]:
    """Let work that was begun end within so many seconds of the signal: inside, `poll` waits for that long."""
    before, _wish.grace_period = _wish.grace_period, seconds
    try:
        yield
    finally:
        _wish.grace_period = before


def received() -> int:
    """The signal that asks this process to stop, 0 if none does."""
    return _wish.signum


def adopt(signum: int) -> None:
    """Take over a signal that another rank received; 0 is none."""
    if signum and not _wish.signum:
        _wish.signum, _wish.since = signum, time.monotonic()


@contextmanager
def wanted_until(event: threading.Event) -> Iterator[None]:
    """Let work of this thread be given up once ``event`` is set: inside, `poll` looks at it."""
    _thread.unwanted = event
    try:
        yield
    finally:
        del _thread.unwanted


def poll() -> None:
    """A place where unfinished work may be given up.

    Raises:
        Stopped: a signal has come, and the `grace_period` is over.
        Unwanted: see `wanted_until`.
    """
    if (unwanted := getattr(_thread, "unwanted", None)) is not None and unwanted.is_set():
        raise Unwanted
    if _wish.signum and time.monotonic() - _wish.since >= _wish.grace_period:
        raise Stopped(_wish.signum, "the step in progress was given up" if _wish.grace_period else "")


def _handle(signum: int, frame: FrameType | None) -> None:
    pressing, name = signum in PRESSING, signal.Signals(signum).name
    if _wish.at_once:
        _tell(f"stopped by {name}; {_wish.left}")
        with suppress(OSError):
            os.rmdir(_wish.folder)
        os._exit(128 + signum)
    first = _wish.heard.get(signum)
    if first is not None and time.monotonic() - first >= SAME_SECONDS:
        os._exit(128 + signum)
    if pressing and first is None:
        _tell(f"{name}: stopping at the next safe place; a second {name} ends the run at once")
        _wish.heard[signum] = time.monotonic()
    elif not pressing and not _wish.signum:
        _tell(f"{name}: stopping at the next safe place")
    adopt(signum)


def _tell(line: str) -> None:
    """One line on standard error, unless that is closed, or a terminal that is held: neither may hold the run."""
    with suppress(OSError, ValueError):
        if _wish.tells and select.select([], [2], [], 0)[1]:
            os.write(2, f"{line}\n".encode())
