"""Several processes for one run: started together, watched, and ended together. Standard library only.

The command composes once and hands the resolved config to every rank. It stays outside of the training, so that it can
end all ranks when one of them fails, dies or hangs, and say in the end which error came first. A rank ends with the
command, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rlhf_lightning import signals
from rlhf_lightning.cli.grace import Grace
from rlhf_lightning.config.messages import as_config_error
from rlhf_lightning.console import redaction
from rlhf_lightning.console.streams import quiet, say
from rlhf_lightning.errors import ConfigError, RankError, RLHFError
from rlhf_lightning.rules.started import started

HANDOVER_VARIABLE = "RLHF_LIGHTNING_RANK_CONFIG"  # in the environment of a rank
REPORT_VARIABLE = "RLHF_LIGHTNING_RANK_REPORT"
RANK_PROGRAM = ["-P", "-m", "rlhf_lightning.cli.rank"]  # whatever the process is that starts it: a worker of joblib too
LOOK_SECONDS = 0.05
END_SECONDS = 3.0  # for the other ranks to end by themselves after the first has
LONGEST = 10_000  # characters of a message or traceback
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
# What a rank says when another one has gone or does not answer.
_CONNECTION = re.compile(r"gloo|nccl|peer|connection|broken pipe|timed out|tcpstore|socket", re.IGNORECASE)


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    pipe: int
    ended: float | None = None  # time.monotonic
    killed: bool = False  # by us
    said: bytes = b""
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> int:
        """As a shell says it for a signal that asks to stop, which also ends a rank before it listens to any."""
        code = self.process.returncode or 0
        return 128 - code if -code in signals.SIGNALS else code

    @property
    def stopped(self) -> bool:
        return self.code - 128 in signals.SIGNALS

    @property
    def at_fault(self) -> bool:
        """Whether it failed by itself, rather than because of another rank or a signal."""
        return self.code != 0 and not (self.killed or self.stopped or self.report.get("lost_another"))

    @property
    def where(self) -> str:
        """What it was doing when it was asked, if it could still say."""
        frame = re.search(rb'File "(?:.*/)?(.+)", line (\d+) in (\S+)', self.said)
        return " in {2} ({0}:{1})".format(*(part.decode() for part in frame.groups())) if frame else ""

    def look(self) -> None:
        """Note what it has said, and whether it has ended."""
        ended = self.process.poll() is not None
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.pipe, 65536):
                self.said += piece
        if ended:
            self.ended = time.monotonic()
            with contextlib.suppress(ValueError):
                self.report = json.loads(self.said)


def count(trainer: Mapping[str, Any]) -> int:
    """Processes to start on this machine for the config group ``trainer``; 1 if this process is enough.

    Where another program has started the ranks (torchrun, srun, mpirun), each of them is enough.

    Raises:
        ConfigError: a strategy that starts processes by itself.
    """
    strategy = str(trainer.get("strategy"))
    if strategy.endswith(("_spawn", "_fork", "_forkserver", "_notebook")):
        raise ConfigError(f"trainer.strategy={strategy}: copies of a process lose what they trained; use trainer=ddp")
    devices = trainer.get("devices", 1)
    if devices == 1 or started() or "LOCAL_RANK" in os.environ:
        return 1
    if isinstance(devices, int) and devices > 1:
        return devices
    quiet()
    import lightning  # asks the machine

    asked = {name: trainer[name] for name in ("accelerator", "devices") if name in trainer}
    with as_config_error(asked):
        return lightning.Trainer(
            **asked, logger=False, enable_checkpointing=False, enable_progress_bar=False
        ).num_devices


def launch(config: Mapping[str, Any], processes: int, logging: Any = None) -> Any:
    """Train in so many ranks, which `serve` in each of them answers.

    Args:
        config: resolved.
        processes: ranks on this machine.
        logging: of the first rank, for `logging.config.dictConfig`.

    Returns:
        what the first rank's work returned.

    Raises:
        RankError: a rank failed, died or was lost; names the first and has its exit code.
        signals.Stopped: this process or a rank was asked to stop.
    """
    ranks: list[_Rank] = []
    handed = {"config": config, "logging": logging, "parent": os.getpid(), "secrets": redaction.known()}
    handed["overrides"] = getattr(config, "overrides", ())
    # In a batch script of Slurm the ranks are ours, while Lightning takes this variable for a sign of srun.
    surroundings = {name: value for name, value in os.environ.items() if name != "SLURM_NTASKS"} | {
        HANDOVER_VARIABLE: json.dumps(handed, default=str),
        "PYTHONPATH": os.pathsep.join(sys.path),  # what this process can import, a rank can
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(_free_port())),
        "NODE_RANK": os.environ.get("NODE_RANK", "0"),
        "WORLD_SIZE": str(processes * int(config["trainer"].get("num_nodes", 1))),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1))),
    }
    try:
        for number in range(processes):
            ranks.append(_start(number, processes * int(surroundings["NODE_RANK"]), surroundings))
        _watch(ranks, Grace(config))
    finally:
        for rank in ranks:
            _kill(rank)
            os.close(rank.pipe)
    return _outcome(ranks, f"Go on with the same command and resume=auto run_dir={config.get('run_dir')}")


def serve(work: Callable[[dict[str, Any]], Any]) -> NoReturn:
    """Be a rank: do the work, report how it ended, and end this process.

    Args:
        work: called with the config that `launch` was given.
    """
    given = json.loads(os.environ.pop(HANDOVER_VARIABLE))
    redaction.remember(given["secrets"])
    pipe = int(os.environ.pop(REPORT_VARIABLE))
    os.set_inheritable(pipe, False)
    code = 0
    try:
        _end_with(given["parent"])
        faulthandler.register(signal.SIGQUIT, pipe, all_threads=False)
        with signals.watched(tells=False, report=pipe):
            if given["logging"] and os.environ["LOCAL_RANK"] == "0":
                import logging.config

                logging.config.dictConfig(given["logging"])
            from rlhf_lightning.config.judging import Judged

            report = {"returned": work(Judged(given["config"], overrides=given["overrides"]))}
    except signals.Stopped as stop:
        code, report = 128 + stop.signum, {"note": stop.note}
    except KeyboardInterrupt:  # before anybody listened
        code, report = 128 + signal.SIGINT, {}
    except BaseException as error:
        code, report = getattr(error, "exit_code", 1), _failure(error)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(pipe, "wb") as stream:
        stream.write(json.dumps(report, default=str).encode())
    os._exit(code)  # what a lost rank leaves behind must not keep this one from ending


def _start(number: int, first: int, surroundings: Mapping[str, str]) -> _Rank:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *RANK_PROGRAM],
        env={**surroundings, "LOCAL_RANK": str(number), "RANK": str(first + number), REPORT_VARIABLE: str(write)},
        pass_fds=[write],
        start_new_session=True,  # Ctrl-C is for the command, which tells its ranks
    )
    os.close(write)
    os.set_blocking(read, False)
    return _Rank(number, process, read)


def _watch(ranks: Sequence[_Rank], grace: Grace) -> None:
    """Return when all have ended; see that they do once one has failed or a signal has come."""
    deadline = float("inf")
    while alive := [rank for rank in ranks if rank.ended is None]:
        for rank in alive:
            rank.look()
        alive = [rank for rank in alive if rank.ended is None]
        if any(rank.said for rank in ranks):  # until then they end with this process
            signals.begin()
        if any(rank.ended and rank.code for rank in ranks):
            deadline = min(deadline, time.monotonic() + END_SECONDS)
        if not grace.told and (signals.received() or deadline < float("inf")):
            grace.begin()
            for rank in alive:
                rank.process.send_signal(signal.SIGTERM)  # of all signals the one that also ends a rank in its start-up
        if time.monotonic() > deadline or grace.over():
            for rank in alive:
                rank.process.send_signal(signal.SIGQUIT)  # says where it is
            time.sleep(2 * LOOK_SECONDS)
            for rank in alive:
                rank.look()
                _kill(rank)
        time.sleep(LOOK_SECONDS)


def _kill(rank: _Rank) -> None:
    if rank.process.poll() is None:
        rank.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.process.pid, signal.SIGKILL)
        rank.process.wait()


def _outcome(ranks: Sequence[_Rank], go_on: str) -> Any:
    """What the first rank returned, or the error that came first."""
    failed = sorted((rank for rank in ranks if rank.code), key=lambda rank: rank.report.get("time", rank.ended or 0.0))
    if not failed:
        return ranks[0].report.get("returned")
    first = next((rank for rank in failed if rank.at_fault), None)
    hung = [
        f"rank {rank.number} did not respond{rank.where} and was killed"
        for rank in failed
        if rank.killed and rank is not first
    ]
    stopped = [rank for rank in failed if rank.stopped]
    if first is None and (stopped or signals.received()):
        notes = [stopped[0].report.get("note", "") if stopped else go_on]
        signum = signals.received() or stopped[0].code - 128
        raise signals.Stopped(signum, "; ".join(filter(None, [*hung, *notes])))
    first = first or failed[0]
    if first.report.get("traceback"):
        say(first.report["traceback"], sys.stderr)
    message = f"rank {first.number}: {_says(first)}"
    if first.report.get("lost_another") and hung:
        message += f" ({'; '.join(hung)})"
    raise RankError(message, first.code if first.report and first.code > 0 else 1)


def _says(rank: _Rank) -> str:
    if rank.report:
        return str(rank.report["says"])
    if rank.code < 0:
        name = signal.Signals(-rank.code).name
        return f"was ended by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
    return f"ended with exit code {rank.code} and no error message"


def _failure(error: BaseException) -> dict[str, Any]:
    text = str(error) or "no message"
    known = isinstance(error, RLHFError)
    return {
        "says": f"{type(error).__name__}: {text}"[:LONGEST],
        "traceback": "" if known else "".join(traceback.format_exception(error))[-LONGEST:],
        "lost_another": isinstance(error, RuntimeError) and bool(_CONNECTION.search(text)),
        "time": time.monotonic(),
    }


def _end_with(parent: int) -> None:
    """Be killed when the command dies, even while waiting for another rank (Linux; as in `scoring.worker`)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
