"""Several processes of one job on this machine."""

import os
import socket
import subprocess
import sys

from tests.gates.gate_sources import ROOT


def launch(module: str, *words: str, log, seconds: float = 300, size: int = 2) -> list[int]:
    """Run ``python -m module words`` as ranks 0 to ``size - 1``; all are gone after ``seconds`` at the latest.

    Args:
        log: a folder for ``rank0.log`` and the others.

    Returns:
        the exit codes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    surroundings = {
        **os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size), "NODE_RANK": "0",
    }  # fmt: skip
    ranks = []
    for rank in range(size):
        environment = {**surroundings, "LOCAL_RANK": str(rank), "RANK": str(rank)}
        with (log / f"rank{rank}.log").open("w") as stream:
            command = [sys.executable, "-m", module, *words]
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream))
    try:
        for process in ranks:
            process.wait(timeout=seconds)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [process.returncode for process in ranks]
