"""Who has started the processes of a run, and how many. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rlhf_lightning.errors import ConfigError


def check_started(trainer: Mapping[str, Any]) -> None:
    """See that another program, torchrun or srun, has started as many ranks as the config speaks of.

    Args:
        trainer: the config group.

    Raises:
        ConfigError: it has started another number; says which keys to set.
    """
    started, by = started_by_others()
    devices, nodes = trainer.get("devices", 1), int(trainer.get("num_nodes", 1))
    if not started or not isinstance(devices, int) or devices < 1 or started == devices * nodes:
        return
    raise ConfigError(
        f"{by} has started {started} process{'es' * (started > 1)}, and trainer.devices={devices} with "
        f"trainer.num_nodes={nodes} makes {devices * nodes}: devices is the number on each machine, num_nodes that of "
        "machines" + (f"; set trainer.num_nodes={started // devices}" if nodes == 1 and started % devices == 0 else "")
    )


def started_by_others() -> tuple[int, str]:
    """How many ranks another program has started, and which one; 0 where none did.

    A batch script of Slurm has variables of a rank, too, but only a step of srun has several.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1)), "torchrun"
    if (ranks := int(os.environ.get("SLURM_STEP_NUM_TASKS", 0))) > 1:
        return ranks, "srun"
    return 0, ""
