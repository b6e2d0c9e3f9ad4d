"""What the ranks of one run do together before and between stages."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning

from rlhf_lightning import signals
from rlhf_lightning.checkpoint.places import TMP
from rlhf_lightning.checkpoint.processes import everyone
from rlhf_lightning.config.compose import redact
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.stages.changes import differences

APPEARS_SECONDS = 30.0  # for which a network file system may remember what was not there


def join(trainer: lightning.Trainer, config: Mapping[str, Any]) -> None:
    """Meet the other ranks, if there are any, and see that all have the same config and folder.

    Args:
        trainer: one like those of the stages; it says how many ranks there are and how they talk.
        config: resolved.

    Raises:
        ConfigError: the config of a rank is another one, or it does not see the run's folder.
    """
    if trainer.world_size == 1:
        return
    launcher: Any = trainer.strategy.launcher
    if launcher is not None:  # called from Python, without our own launcher
        launcher.launch(lambda: None, trainer=trainer)
    trainer.strategy.connect(lightning.LightningModule())  # FSDP2 tells it the device mesh
    trainer.strategy.setup_environment()
    compare(config)
    check_shared(Path(config["run_dir"]))


def compare(config: Mapping[str, Any]) -> None:
    """Refuse a config that is not the same on all ranks.

    Raises:
        ConfigError: on every rank; names the keys and both values of the first rank that differs from rank 0.
    """
    text = json.dumps(config, sort_keys=True, default=str)
    hashes = everyone().gather(hashlib.sha256(text.encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    other = next(rank for rank, found in enumerate(hashes) if found != hashes[0])
    configs = everyone().gather(redact(json.loads(text)))
    changed = list(differences(configs[0], configs[other])) or ["a key that holds a secret"]
    raise ConfigError(
        f"rank {other} has another config than rank 0 ({'; '.join(changed[:5])}); start all ranks with the same "
        "command, in the same folder and environment"
    )


def check_shared(folder: Path) -> None:
    """Refuse a folder of the run that is not one and the same for all ranks, such as a disk of each machine.

    Raises:
        ConfigError: on every rank; names the first rank that does not see what rank 0 has written.
    """
    ranks = everyone()
    place = folder / Path(ranks.first("" if ranks.index else tempfile.mkdtemp(prefix=f"{TMP}shared-", dir=folder))).name
    try:
        seen = ranks.gather((platform.node(), _appears(place)))
    finally:
        if not ranks.index:
            place.rmdir()
    if blind := [rank for rank, (_, found) in enumerate(seen) if not found]:
        raise ConfigError(
            f"run_dir={folder}: rank {blind[0]} on {seen[blind[0]][0]} does not see what rank 0 on {seen[0][0]} writes "
            "there; choose a folder on a disk that all machines share"
        )


def _appears(place: Path) -> bool:
    """Whether something is there, or will be before long."""
    limit = time.monotonic() + APPEARS_SECONDS
    while not (found := place.exists()) and time.monotonic() < limit:
        if place.parent.is_dir():
            os.listdir(place.parent)  # has the file system ask again
        time.sleep(0.1)
    return found


def stop_if_asked() -> None:
    """Between two stages: all ranks stop if one of them was told to.

    Raises:
        Stopped: a signal has come.
    """
    signals.adopt(max(everyone().gather(signals.received())))
    signals.poll()
