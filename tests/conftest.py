"""Settings of every test: one thread per process, no network, Ctrl-C that works."""

import contextlib
import gc
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in background jobs of a shell, which processes inherit
    with contextlib.suppress(ValueError):  # in a thread
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What is there by now stays: looking through it again and again is a fifth of the time of many tests."""
    gc.collect()
    gc.freeze()
