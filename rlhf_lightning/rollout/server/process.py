"""A vLLM server as a process of the run: started on this machine, watched, and ended with the run."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rlhf_lightning import signals
from rlhf_lightning.console.display import plain
from rlhf_lightning.errors import ConfigError, RolloutError
from rlhf_lightning.rollout.server import keeper

LOG = "server.log"
LOOK_SECONDS = 0.25
ENDING_SECONDS = 4.0  # of a server and all that it has started, see `keeper.REST_SECONDS`
_LINES, _LONGEST = 12, 600  # of the log, in a message, and their characters
_READ = 2_000_000  # bytes of it
_ERROR = re.compile(r"(^|\] )[\w.]*(Error|Exception): ")
_OF_A_JOB = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


class ServerProcess:
    """A command that listens on a port of this machine. It ends with this process, however that ends.

    Args:
        command: program and words.
        environment: variables to set.
        log: file that gets all it says.

    Raises:
        ConfigError: there is no such program.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        if shutil.which(command[0]) is None:
            raise ConfigError(
                f"rollout.program={command[0]}: there is no such program; install vLLM into an environment of its own "
                "and name its command, for example rollout.program=../vllm_env/bin/vllm"
            )
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_A_JOB}
        with log.open("ab") as output:
            self._began = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-P", keeper.__file__, *command],
                stdin=subprocess.PIPE, stdout=output, stderr=output, env={**inherited, **environment},
                start_new_session=True,
            )  # fmt: skip
        self._end = weakref.finalize(self, _close, self._process, os.getpid())

    def wait(self, ready: Callable[[], bool], until: float) -> None:
        """Return when ``ready`` says so; a place to stop.

        Raises:
            RolloutError: it has ended before, or is not ready by ``until``, a time on `time.monotonic`.
        """
        while not ready():
            self.require()
            if time.monotonic() > until:
                self.require(ENDING_SECONDS)
                raise RolloutError(f"rollout: the server did not start in time; raise rollout.deadline. {self._tail()}")
            signals.poll()
            time.sleep(LOOK_SECONDS)

    def require(self, patience: float = 0.0) -> None:
        """Refuse a server that has ended; one that is just ending has so many seconds for it.

        Raises:
            RolloutError: it has; says with what words.
        """
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(patience)
            how = f"exit code {code}" if code < 128 else f"signal {code - 128}"
            raise RolloutError(f"rollout: the server has ended ({how}). {self._tail()}")

    def close(self) -> None:
        """End it."""
        self._end()

    def _tail(self) -> str:
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(self._began)
            lines = file.read()[-_READ:].decode(errors="replace").splitlines()
            last = [plain(line)[:_LONGEST] for line in lines[-_LINES:]]
            cause = next((plain(line)[:_LONGEST] for line in lines if _ERROR.search(line)), None)
            first = "" if cause is None or cause in last else f"Its first error in {self.log}:\n{cause}\n"
            if last:
                return f"{first}The end of {self.log}:\n" + "\n".join(last)
        return f"{self.log} is empty"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def _close(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process that started it
        return
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
