"""The process a reward function runs in: a script of the standard library only, which starts in a tenth of a second.

Requests and answers are JSON behind a length of 8 bytes, over a socket of their own: what the function prints goes to
the standard error of the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import inspect
import io
import json
import os
import reprlib
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

HEADER = 8  # bytes, big-endian
LONGEST = 300  # characters of an exception's text
_NOT_THEIRS = ("<", f"{os.sep}asyncio{os.sep}", f"{os.sep}concurrent{os.sep}", f"{os.sep}threading.py")
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def load(path: str) -> Callable[..., Any]:
    """The object at an import path such as ``my_project.rewards.brevity``.

    Raises:
        ImportError, AttributeError, ValueError: there is none.
    """
    module, _, attribute = path.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found


def settled(returned: Any) -> Any:
    """What a function returned, once it is done where it is ``async``, or where the items of a list are."""
    waited = returned if isinstance(returned, list) else [returned]
    if not any(inspect.isawaitable(item) for item in waited):
        return returned
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def gathered() -> list[Any]:
        return list(await asyncio.gather(*(item if inspect.isawaitable(item) else _itself(item) for item in waited)))

    with ThreadPoolExecutor(1) as alone:  # the caller may be in a loop of its own, as notebooks are
        found = alone.submit(asyncio.run, gathered()).result()
    return found if isinstance(returned, list) else found[0]


async def _itself(value: Any) -> Any:
    return value


def plain(value: Any) -> Any:
    """What a function returned as None, numbers and lists of them; tensors and arrays become lists.

    Anything else becomes ``{"type": its type, "repr": a short text}``, which is no score.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (int, float)):
        return value
    if hasattr(value, "__float__"):  # Decimal, Fraction
        return float(value)
    return {"type": type(value).__name__, "repr": reprlib.repr(value)}


def describe(error: BaseException) -> str:
    """``raised KeyError: 'answer' (rewards.py:12)``; the line is that of the outermost frame after the call."""
    text = " ".join(str(error).split())
    said = f"raised {type(error).__name__}: {text if len(text) <= LONGEST else text[:LONGEST] + '...'}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)[1:]
        if frame.filename != __file__ and not any(part in frame.filename for part in _NOT_THEIRS)
    ]
    return f"{said} ({os.path.basename(frames[0].filename)}:{frames[0].lineno})" if frames else said


def send(channel: socket.socket, message: bytes, deadline: float | None = None) -> None:
    """Send one message; ``deadline`` is a time of `time.monotonic`.

    Raises:
        TimeoutError: it was not taken in time.
        OSError: nobody is at the other end.
    """
    channel.settimeout(_left(deadline))
    channel.sendall(len(message).to_bytes(HEADER, "big") + message)


def receive(channel: socket.socket, deadline: float | None = None) -> Any:
    """The next message.

    Raises:
        TimeoutError: it did not come in time.
        EOFError: nobody is at the other end.
    """
    return json.loads(_read(channel, int.from_bytes(_read(channel, HEADER, deadline), "big"), deadline))


def serve(channel: socket.socket) -> None:
    """Load the function named by the first message, then answer calls until the other end closes."""
    first = receive(channel)
    sys.path[:] = first["path"]
    try:
        function = load(first["function"])
    except BaseException as error:
        send(channel, _failure(error))
        return
    send(channel, b"{}")
    own = os.getpid()
    while True:
        arguments = receive(channel)
        answer = _answer(function, arguments)
        if os.getpid() != own:  # a fork in the function: its answer would be taken for that of a later call
            os._exit(0)
        send(channel, answer)


def _answer(function: Callable[..., Any], arguments: dict[str, Any]) -> bytes:
    try:
        returned = settled(function(**arguments))
    except BaseException as error:  # SystemExit too: it must not look like an end of the run
        return _failure(error)
    return json.dumps({"returned": plain(returned)}).encode()


def _failure(error: BaseException) -> bytes:
    return json.dumps({"says": describe(error), "traceback": "".join(traceback.format_exception(error))}).encode()


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _read(channel: socket.socket, count: int, deadline: float | None) -> bytes:
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        channel.settimeout(_left(deadline))
        try:
            fresh = channel.recv_into(view[got:])
        except ConnectionError:
            fresh = 0
        if not fresh:
            raise EOFError
        got += fresh
    return bytes(data)


def _end_with(parent: int) -> None:
    """Be killed when the parent dies, even inside code that never returns to Python.

    Linux looks at the thread that started the worker. Should that thread end first, so does the worker, between two
    calls, and the next call starts another.
    """
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere the closed socket ends an idle worker
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class _Lasting(io.FileIO):
    """What a function prints is no reason for it to fail, where nobody reads any more or the disk is full."""

    def write(self, data: Any) -> int:
        """Write, or lose it."""
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)

    @classmethod
    def text(cls, descriptor: int) -> io.TextIOWrapper:
        """To print to, at once."""
        raw: Any = cls(descriptor, "w", closefd=False)
        return io.TextIOWrapper(raw, errors="backslashreplace", write_through=True)


def _wait_for_the_run() -> None:
    """Ignore signals that a batch system sends to all processes of a job: the run decides when its worker ends.

    Processes that the function starts answer them as usual.
    """
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    os.register_at_fork(after_in_child=lambda: [signal.signal(number, before[number]) for number in numbers])


def main() -> None:
    """Serve the socket whose descriptor is the first argument, for the parent whose process id is the second."""
    descriptor, parent = map(int, sys.argv[1:])
    _end_with(parent)
    os.set_inheritable(descriptor, False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()  # SIGABRT at the deadline, or a crash, shows the line
    sys.stdout, sys.stderr = (_Lasting.text(1), _Lasting.text(2))
    _wait_for_the_run()
    with contextlib.suppress(EOFError, BrokenPipeError):
        serve(socket.socket(fileno=descriptor))


if __name__ == "__main__":
    main()
