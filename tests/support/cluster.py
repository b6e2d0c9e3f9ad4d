"""A scheduler that runs batch scripts on this machine as Slurm does, and torchrun for machines that are this one."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

from tests.gates.gate_sources import ROOT

JOB = "1234"
_PYTHON = f"#!{sys.executable}\n"
# Starts the tasks of a step, notes their process ids, and ends with the largest of their codes.
_SRUN = """
import os, subprocess, sys
command = sys.argv[next(i for i, word in enumerate(sys.argv) if i and not word.startswith("--")):]
tasks, each = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
started = []
for task in range(tasks):
    places = {"SLURM_PROCID": task, "SLURM_LOCALID": task % each, "SLURM_NODEID": task // each}
    step = {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_NUM_NODES": tasks // each}
    environment = {**os.environ, **{name: str(value) for name, value in (places | step).items()}}
    log = open(os.path.join(os.environ["CLUSTER"], f"{task}.log"), "a")
    started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
with open(os.path.join(os.environ["CLUSTER"], "pids"), "w") as file:
    file.write(" ".join(str(task.pid) for task in started))
codes = [task.wait() for task in started]
with open(os.path.join(os.environ["CLUSTER"], "codes"), "w") as file:
    file.write(" ".join(map(str, codes)))
sys.exit(max(code % 256 for code in codes))
"""
# Notes what it was asked and what was saved by then, and ends the tasks, as Slurm does with a job that it requeues.
_SCONTROL = """
import os, signal, sys
saved = os.listdir(os.environ["SAVED"])
with open(os.path.join(os.environ["CLUSTER"], "scontrol"), "a") as file:
    print(*sys.argv[1:], *sorted(saved), file=file)
for pid in open(os.path.join(os.environ["CLUSTER"], "pids")).read().split():
    try:
        os.kill(int(pid), signal.SIGTERM)
    except ProcessLookupError:
        pass
"""


class Cluster:
    """Slurm with as many tasks as a script asks for.

    Args:
        folder: of its own.
        saved: where the run keeps its checkpoints.
        environment: of all jobs.
    """

    def __init__(self, folder, saved, **environment):
        self.folder = folder
        (programs := folder / "bin").mkdir()
        for name, text in {"srun": _SRUN, "scontrol": _SCONTROL}.items():
            (programs / name).write_text(_PYTHON + text)
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "CLUSTER": str(folder), "SAVED": str(saved),
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment,
        }  # fmt: skip

    def start(self, script):
        """A job, as a process."""
        asked = dict(re.findall(r"(?m)^#SBATCH --([\w-]+)=(.*)", script))
        nodes, each = int(asked["nodes"]), int(asked["ntasks-per-node"])
        variables = {
            "SLURM_JOB_ID": JOB, "SLURM_JOB_NAME": asked["job-name"], "SLURM_NODELIST": "127.0.0.1",
            "SLURM_NNODES": nodes, "SLURM_NTASKS": nodes * each, "SLURM_NTASKS_PER_NODE": each,
            "SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NODEID": 0, "MASTER_PORT": free_port(),
        }  # fmt: skip
        environment = self.environment | {name: str(value) for name, value in variables.items()}
        (self.folder / "pids").unlink(missing_ok=True)
        return subprocess.Popen(["bash", "-c", script], cwd=asked["chdir"], env=environment)

    def time_is_nearly_over(self, script, tasks):
        """Send what the script asks for, which with B: would go to the shell alone; the others are told too late."""
        to_shell, name = re.search(r"--signal=(B:)?(\w+)@", script).groups()
        assert not to_shell, "nobody would tell the tasks"
        pids = (self.folder / "pids").read_text().split()
        for task in tasks:
            os.kill(int(pids[task]), signal.Signals[f"SIG{name}"])

    def told(self, name):
        """The lines that a program or a task has left: ``scontrol``, ``codes``, ``0.log``."""
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []


def torchrun(nodes, each, words, log, seconds=300, **environment):
    """The exit codes of torchrun on so many machines, with so many processes on each."""
    port = free_port()
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={each}",
        "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", str(ROOT / "train.py"), *words,
    ]  # fmt: skip
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    with log.open("w") as stream:
        machines = [
            subprocess.Popen(command, cwd=ROOT, env=variables, stdout=stream, stderr=stream) for _ in range(nodes)
        ]
        try:
            return [machine.wait(seconds) for machine in machines]
        finally:
            for machine in machines:
                machine.kill()
                machine.wait()


def wait_until(holds, seconds=180):
    """Return as soon as something holds."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
