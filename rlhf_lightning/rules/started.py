"""Who has started the processes of a run, how many there are, and which of them this is. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.errors import ConfigError

_FOLDER = ("run_dir=", "hydra.run.dir=")


@dataclass(frozen=True)
class Started:
    """Processes that another program has started for one run.

    Args:
        by: the program.
        ranks: how many.
        rank: which one this is.
    """

    by: str
    ranks: int
    rank: int


def started() -> Started | None:
    """What another program has started; None where none did.

    A batch script of Slurm has variables of a rank, too, but only a step of srun has several.
    """
    get = os.environ.get
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Started("torchrun", int(get("WORLD_SIZE", 1)), int(get("RANK", 0)))
    if (ranks := int(get("SLURM_STEP_NUM_TASKS", 0))) > 1:
        return Started("srun", ranks, int(get("SLURM_PROCID", 0)))
    return None


def number() -> int:
    """Which of the processes of its run this one is; the first writes the files, and speaks for all."""
    others = started()
    return others.rank if others else int(os.environ.get("RANK", os.environ.get("NODE_RANK", 0)))


def names_folder(words: Sequence[str]) -> bool:
    """Whether a command line says where the run is written, rather than leaving it to the clock."""
    return any(word.startswith(_FOLDER) for word in words)


def check_folder(words: Sequence[str]) -> None:
    """See that ranks which compose for themselves get the same folder.

    Raises:
        ConfigError: another program has started them, and the command line names no folder.
    """
    others = started()
    if others and not names_folder(words):
        raise ConfigError(
            f"under {others.by} every rank composes for itself and needs the same folder: add run_dir=FOLDER"
        )


def check_started(trainer: Mapping[str, Any]) -> None:
    """See that another program, torchrun or srun, has started as many ranks as the config speaks of.

    Args:
        trainer: the config group.

    Raises:
        ConfigError: it has started another number; says which keys to set.
    """
    others = started()
    devices, nodes = trainer.get("devices", 1), int(trainer.get("num_nodes", 1))
    if others is None or not isinstance(devices, int) or devices < 1 or others.ranks == devices * nodes:
        return
    count = others.ranks
    raise ConfigError(
        f"{others.by} has started {count} process{'es' * (count > 1)}, and trainer.devices={devices} with "
        f"trainer.num_nodes={nodes} makes {devices * nodes}: devices is the number on each machine, num_nodes that of "
        "machines" + (f"; set trainer.num_nodes={count // devices}" if nodes == 1 and count % devices == 0 else "")
    )
