"""Calls of a Python function in a process of its own, which a deadline can end and which takes nothing down with it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rlhf_lightning import signals
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.scoring.isolation import worker

START_SECONDS = 300.0  # to start Python and import the function's module
LOOK_SECONDS = 0.25  # between two looks whether the run is to stop
END_SECONDS = 1.0  # to end by itself before it is killed


class CallFailed(Exception):
    """A call that brought no answer.

    Attributes:
        says: what happened, as the end of a sentence about the function.
        timed_out: whether it was ended at its deadline.
    """

    def __init__(self, says: str, timed_out: bool = False) -> None:
        super().__init__(says)
        self.says, self.timed_out = says, timed_out


class IsolatedFunction:
    """A function in a worker process, started at the first call and again after it died or was killed.

    The worker imports the function by its path, gets its arguments as JSON, and runs in the folder and with the
    environment and ``sys.path`` of this process. It ends with this process, however that ends. Processes which the
    function starts are killed with it, unless they leave its session.

    Args:
        path: import path of the function.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None

    def __call__(self, arguments: Mapping[str, Any], seconds: float) -> Any:
        """What the function returned, as `worker.plain` writes it.

        Args:
            arguments: keywords, of what JSON can hold; arrays arrive as lists and tuples too.
            seconds: the deadline. The time to start the worker does not count.

        Raises:
            CallFailed: the function raised, ran out of time, or its process died.
            ConfigError: an argument cannot be written as JSON.
        """
        message = _encoded(arguments)
        self.start()
        answer = self._exchange(
            message, seconds, f"did not respond within {seconds:g} s (standard error shows where it was)"
        )
        return answer["returned"]

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None if there is none."""
        return self._process.pid if self._process and self._end and self._end.alive else None

    def start(self) -> None:
        """Start the worker if there is none.

        Raises:
            CallFailed: the function cannot be imported there.
        """
        if self.pid is not None:
            assert self._channel is not None
            if not select.select([self._channel], [], [], 0)[0]:
                return
            self.close()  # it died between two calls: nothing was lost
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-u", worker.__file__, str(descriptor), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=2, pass_fds=[descriptor], start_new_session=True,
            )  # fmt: skip
        self._channel = ours
        self._end = weakref.finalize(self, _end, self._process, ours, os.getpid())
        hello = _encoded({"path": sys.path, "function": self.path})
        self._exchange(hello, START_SECONDS, f"was not imported within {START_SECONDS:g} s")

    def close(self) -> None:
        """End the worker; the next call starts another."""
        if self._end is not None:
            self._end()

    def _exchange(self, message: bytes, seconds: float, too_late: str) -> dict[str, Any]:
        assert self._channel is not None and self._process is not None
        deadline = time.monotonic() + seconds
        try:
            worker.send(self._channel, message, deadline)
            _await(self._channel, deadline)
            answer: dict[str, Any] = worker.receive(self._channel, deadline)
        except TimeoutError:
            self._process.send_signal(signal.SIGABRT)  # faulthandler shows on stderr where it was
            self.close()
            raise CallFailed(too_late, timed_out=True) from None
        except (EOFError, OSError):
            self.close()
            raise CallFailed(f"ended its process ({_how(self._process.returncode)})") from None
        except BaseException:  # stopped: an answer still to come would be taken for that of the next call
            self.close()
            raise
        if "says" in answer:
            failed = CallFailed(answer["says"])
            failed.add_note(f"In the worker:\n{answer['traceback']}")
            raise failed
        return answer


def _await(channel: socket.socket, deadline: float) -> None:
    """Return when something has come or the deadline is over; a place to stop."""
    while (left := deadline - time.monotonic()) > 0 and not select.select([channel], [], [], min(left, LOOK_SECONDS))[
        0
    ]:
        signals.poll()


def _encoded(arguments: Mapping[str, Any]) -> bytes:
    columns = []
    for name, value in arguments.items():
        try:
            columns.append(f"{json.dumps(name)}: {json.dumps(value, default=_listed)}")
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"column {name!r} of the data cannot be sent to the process of the reward function ({error}); "
                "keep it as text or numbers, or set isolate=false on the scorer"
            ) from error
    return f"{{{', '.join(columns)}}}".encode()


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}")


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _end(process: subprocess.Popen[bytes], channel: socket.socket, owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process that started it
        return
    with suppress(OSError):
        channel.shutdown(socket.SHUT_WR)
        channel.settimeout(END_SECONDS)
        channel.recv(1)  # returns when the worker has ended
    channel.close()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
