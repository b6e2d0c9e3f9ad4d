"""What the ranks of one run do together before and between stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import lightning
import torch

from rlhf_lightning import signals
from rlhf_lightning.config.compose import redact
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.stages.changes import differences


def join(trainer: lightning.Trainer, config: Mapping[str, Any]) -> None:
    """Meet the other ranks, if there are any, and see that all have the same config.

    Args:
        trainer: one like those of the stages; it says how many ranks there are and how they talk.
        config: resolved.

    Raises:
        ConfigError: the config of a rank is another one; names the keys.
    """
    if trainer.world_size == 1:
        return
    launcher: Any = trainer.strategy.launcher
    if launcher is not None:  # called from Python, without our own launcher
        launcher.launch(lambda: None, trainer=trainer)
    trainer.strategy.connect(lightning.LightningModule())  # FSDP2 tells it the device mesh
    trainer.strategy.setup_environment()
    compare(config)


def compare(config: Mapping[str, Any]) -> None:
    """Refuse a config that is not the same on all ranks.

    Raises:
        ConfigError: on every rank; names the keys and both values of the first rank that differs from rank 0.
    """
    text = json.dumps(config, sort_keys=True, default=str)
    hashes = _everywhere(hashlib.sha256(text.encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    other = next(rank for rank, found in enumerate(hashes) if found != hashes[0])
    configs = _everywhere(redact(json.loads(text)))
    changed = list(differences(configs[0], configs[other])) or ["a key that holds a secret"]
    raise ConfigError(
        f"rank {other} has another config than rank 0 ({'; '.join(changed[:5])}); start all ranks with the same "
        "command, in the same folder and environment"
    )


def stop_if_asked() -> None:
    """Between two stages: all ranks stop if one of them was told to.

    Raises:
        Stopped: a signal has come.
    """
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    signals.adopt(max(_everywhere(signals.received())) if together else signals.received())
    signals.poll()


def _everywhere(value: Any) -> list[Any]:
    """The values of all ranks."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
