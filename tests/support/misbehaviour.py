"""A callback that lets one rank fail at the start of a step."""

import os
import signal
import time

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
