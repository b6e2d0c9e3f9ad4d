"""Under Slurm: a run whose time is nearly over goes back into the queue. Standard library only."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

from rlhf_lightning.rules.started import names_folder, number

TIME_IS_OVER = (signal.SIGUSR1, signal.SIGUSR2)  # what `--signal` of a job is set to; others mean that it is to end
ANSWER_SECONDS = 60.0  # in which the controller must answer


def requeue(signum: int, resume: str, words: Sequence[str]) -> str:
    """Ask for the job of this run to be put back into the queue, once the run has saved and ended.

    The first rank alone asks. Nothing is asked for outside of Slurm, for other signals, or for a command that would not
    go on from what was saved.

    Args:
        signum: of the signal that has stopped the run.
        resume: the key.
        words: of the command line.

    Returns:
        what to say about it; nothing where the signal asks for nothing.
    """
    job = _job()
    if not job or signum not in TIME_IS_OVER or number() != 0:
        return ""
    if resume != "auto" or not names_folder(words):
        return f"job {job} is not put back into the queue: that needs resume=auto and run_dir=FOLDER"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} is not put back into the queue: {error}"
    if done.returncode:
        return f"job {job} is not put back into the queue: {done.stderr.strip() or done.stdout.strip()}"
    return f"job {job} is put back into the queue"


def _job() -> str:
    """The number by which Slurm knows the job, that of one task where the job is an array of them."""
    array = (os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID"))
    return f"{array[0]}_{array[1]}" if all(array) else os.environ.get("SLURM_JOB_ID", "")
