"""A callback that lets one rank fail at the start of a step, and a reward function that takes its time."""

import os
import signal
import time
from pathlib import Path

import lightning


class Misbehaviour(lightning.Callback):
    """``how`` is raise, exit, kill, hang, or the name of a signal that the rank sends to itself."""

    def __init__(self, how, rank=0, step=1):
        self.how, self.rank, self.step = how, rank, step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank != self.rank or batch_idx != self.step:
            return
        if self.how == "raise":
            raise KeyError("of this rank")
        if self.how == "exit":
            os._exit(9)
        if self.how == "hang":
            time.sleep(1e6)
        os.kill(os.getpid(), signal.SIGKILL if self.how == "kill" else signal.Signals[self.how])


def tells_and_waits(prompts, completions, **columns):
    """Leaves a file for every call, and the calls from number WAIT_FROM on take WAIT_SECONDS."""
    folder = Path(os.environ["CALLS"])
    number = len(list(folder.iterdir()))
    (folder / f"{number}.{os.getpid()}").touch()
    if number >= int(os.environ.get("WAIT_FROM", "0")):
        time.sleep(float(os.environ.get("WAIT_SECONDS", "0")))
    return [float(len(completion)) for completion in completions]
