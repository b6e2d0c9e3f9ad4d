"""Start a program and end it with the process that started this script. Standard library only.

Whoever starts it holds the other end of its standard input: when that closes, however it came to that, the program is
asked to end, and then all that it has left in its process group; what does not end in time is killed.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

LOOK_SECONDS = 0.2  # between two looks
END_SECONDS = 20.0  # to end by itself, which frees its shared memory
REST_SECONDS = 3.0  # of what it has left
_ADOPT = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
OF_A_JOB = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def keep(command: Sequence[str]) -> int:
    """Run a command until it ends, or until standard input does; returns its exit code, 128 + signal if it got one."""
    for number in OF_A_JOB:
        signal.signal(number, signal.SIG_IGN)  # sent to all processes of a job: the run decides
    with suppress(OSError, AttributeError):  # Linux only; elsewhere the system takes care of children without a parent
        ctypes.CDLL(None).prctl(_ADOPT, 1)
    program = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_heed)
    while program.poll() is None:
        if select.select([0], [], [], LOOK_SECONDS)[0] and not os.read(0, 1):
            program.terminate()
            _until(lambda: program.poll() is not None, END_SECONDS)
            break
    if program.poll() is None:
        _signal(program.pid, signal.SIGKILL)
    code = program.wait()
    _signal(program.pid, signal.SIGTERM)
    _until(lambda: _buried() and not _signal(program.pid, 0), REST_SECONDS)
    _signal(program.pid, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _heed() -> None:
    for number in OF_A_JOB:
        signal.signal(number, signal.SIG_DFL)


def _buried() -> bool:
    """Wait for the children that have ended; True."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return True


def _until(over: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not over() and time.monotonic() < end:
        time.sleep(0.05)


def _signal(group: int, number: int) -> bool:
    """Whether there was anybody to send it to."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
