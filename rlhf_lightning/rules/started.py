"""Who has started the processes of a run, how many there are, and which of them this is. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.errors import ConfigError

# Number of ranks, which one this is, which one on its machine, and how many there: of Open MPI, of MPICH and Intel MPI.
_MPI = (
    tuple(f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
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
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Started("torchrun", _variable("WORLD_SIZE", 1), _variable("RANK"))
    if (ranks := _variable("SLURM_STEP_NUM_TASKS")) > 1:
        return Started("srun", ranks, _variable("SLURM_PROCID"))
    if (mpi := _of_mpirun()) is not None:
        return Started("mpirun", mpi[0], mpi[1])
    return None


def adopt_mpirun() -> None:
    """Give a rank of mpirun the variables of torch, which knows none of MPI; does nothing elsewhere.

    Raises:
        ConfigError: the ranks of a machine do not follow each other, or nothing says which machine is the first.
    """
    others, mpi = started(), _of_mpirun()
    if others is None or others.by != "mpirun" or mpi is None or "LOCAL_RANK" in os.environ:
        return
    ranks, rank, local, here = mpi
    if ranks % here or rank % here != local:
        raise ConfigError(
            f"rank {rank} of mpirun is number {local} of {here} on its machine: every machine must have as many ranks, "
            "one after the other (mpirun --map-by slot); or use torchrun"
        )
    if ranks > here and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            "under mpirun on several machines every rank needs the name of the first: add -x MASTER_ADDR=HOST -x "
            "MASTER_PORT=29500 to mpirun (with MPICH -genv MASTER_ADDR HOST), or use torchrun"
        )
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    os.environ |= {
        "WORLD_SIZE": str(ranks),
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "NODE_RANK": str(rank // here),
    }


def _of_mpirun() -> tuple[int, int, int, int] | None:
    """Number of ranks, this one, its number on its machine, and how many there; None for a single process."""
    for names in _MPI:
        if _variable(names[0]) > 1:
            ranks, rank, local, here = map(_variable, names)
            return ranks, rank, local, here or ranks
    return None


def _variable(name: str, default: int = 0) -> int:
    """A number of the environment; what is none was not set by a program that starts ranks."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def number() -> int:
    """Which of the processes of its run this one is; the first writes the files, and speaks for all."""
    others = started()
    return others.rank if others else _variable("RANK", _variable("NODE_RANK"))


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
    """See that another program, torchrun, srun or mpirun, has started as many ranks as the config speaks of.

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
