"""Settings of every test: one thread per process, no network, Ctrl-C that works, logging of its own."""

import contextlib
import gc
import logging
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in background jobs of a shell, which processes inherit
    with contextlib.suppress(ValueError):  # in a thread
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What is there by now stays: looking through it again and again is a fifth of the time of many tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def logging_as_before():
    """A command that runs inside a test sets up logging; what the next test sees must not depend on it."""
    loggers = [logging.getLogger(), logging.getLogger("rlhf_lightning")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        for handler in [handler for handler in logger.handlers if handler not in handlers]:
            logger.removeHandler(handler)
            handler.close()
