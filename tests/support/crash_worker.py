"""Save checkpoint after checkpoint in a child that ends at its n-th call into the system, for every n.

``python -m tests.support.crash_worker FOLDER`` prints one JSON list with an entry for each crash.
"""

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

import tests.conftest  # noqa: F401  (threads and no network)
from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, newest_checkpoint
from rlhf_lightning.checkpoint.places import sweep
from tests.support.dying_child import dies_before

SAVES, KEEP = 4, 2
POINTS = {"open", "write", "close", "fsync", "rename", "audit", "mkdir", "rmdir", "unlink", "chmod", "__exit__"}
"""The names of what a save calls in the system: ``audit`` is the exchange of two folders."""


def state(step):
    return {"global_step": step, "state_dict": {f"w{i}": torch.full((300,), float(step)) for i in range(3)}}


def saver(folder, step):
    """The callback with a Trainer that is at ``step``."""
    io = DurableCheckpointIO()
    callback = DurableCheckpoint(folder, keep=KEEP)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(save_checkpoint=io.save_checkpoint, remove_checkpoint=io.remove_checkpoint),
        _checkpoint_connector=SimpleNamespace(dump_checkpoint=lambda: state(step)), is_global_zero=True,
        global_step=step,
        lightning_module=SimpleNamespace(automatic_optimization=True),
    )  # fmt: skip
    return callback, trainer


def save(folder, step):
    callback, trainer = saver(folder, step)
    callback.save(trainer)


def listen(before):
    """To every call into the system that is one of a save."""

    def watch(frame, event, called):
        if event == "c_call" and called.__name__ in POINTS:
            before(called.__name__)

    sys.setprofile(watch)


def complete(folder):
    """The steps whose checkpoints can be loaded."""
    found = []
    for path in sorted(folder.glob("step-*")):
        loaded = DurableCheckpointIO().load_checkpoint(path)  # raises where one has the name and is not whole
        assert all(bool((w == loaded["global_step"]).all()) for w in loaded["state_dict"].values())
        found.append(loaded["global_step"])
    return found


def main(root):
    for step in range(1, SAVES):
        save(root / "before", step)
    found = []
    for again in (False, True):  # a new step, and one that was saved before and is replaced
        number = 0
        while True:
            folder = shutil.copytree(root / "before", root / f"{again}-{number}")
            step = SAVES - again
            name = dies_before(number, partial(save, folder, step), listen)
            if name is None:
                break
            there, said = complete(folder), []
            newest = newest_checkpoint(folder, said.append)
            sweep(folder)
            save(folder, SAVES + 1)
            after = sorted(path.name for path in folder.iterdir())
            entry = {"before": name, "replaces": again, "complete": there, "newest": newest and newest.name}
            found.append(entry | {"said": said, "after": after})
            number += 1
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
