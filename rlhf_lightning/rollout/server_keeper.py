"""Start a program and end it with the process that started this script. Standard library only.

Whoever starts it holds the other end of its standard input: when that closes, however it came to that, the program and
all that it has started in its process group are asked to end, and killed ten seconds later.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

LOOK_SECONDS = 0.2  # between two looks
END_SECONDS = 10.0  # to end before it is killed


def keep(command: Sequence[str]) -> int:
    """Run a command until it ends, or until standard input does; returns its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # sent to all processes of a job: the run decides
    program = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, start_new_session=True, restore_signals=True, preexec_fn=_usual
    )
    while program.poll() is None:
        if select.select([0], [], [], LOOK_SECONDS)[0] and not os.read(0, 1):
            _end(program)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(program.pid, signal.SIGKILL)  # what it has left
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def _usual() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def _end(program: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(program.pid, signal.SIGTERM)
    end = time.monotonic() + END_SECONDS
    while program.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
