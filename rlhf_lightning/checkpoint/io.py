"""Checkpoints for Lightning as verified folders: complete or not there at all, and nothing in them can run code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from rlhf_lightning.checkpoint.codec import read_state, state_size, write_state
from rlhf_lightning.checkpoint.folders import write_folder
from rlhf_lightning.checkpoint.hyperparameters import with_plain_records
from rlhf_lightning.checkpoint.nonfinite import first_nonfinite, named_tensors
from rlhf_lightning.checkpoint.places import foreign, free_name, remove_folder
from rlhf_lightning.checkpoint.provenance import read_provenance, verify_folder
from rlhf_lightning.errors import CheckpointError, NumericalError

STAGE, CONFIG = "checkpoint", "config.yaml"
LEARNED = ("state_dict", "optimizer_states")
_NUMBERED = re.compile(r"step-(\d+)")


class DurableCheckpointIO(CheckpointIO):
    """What the Trainer saves and loads with: ``Trainer(plugins=[DurableCheckpointIO()])``.

    `ModelCheckpoint` and ``fit(ckpt_path=FOLDER)`` work as always, except that a checkpoint is a folder: tensors as
    safetensors, the rest as JSON, and a SHA-256 of every file, which is checked before anything is loaded. It is
    written beside its place, flushed and renamed. One of the same name that is damaged steps aside and is kept.

    Args:
        config: text of the run's ``config.yaml``, to be kept in every checkpoint.
    """

    def __init__(self, config: str = "") -> None:
        self.config = config
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the state of a run.

        Raises:
            DiskError: the place cannot be written to, or is full.
            CheckpointError: the state holds what cannot be stored.
            NumericalError: weights or optimizer state are not finite; nothing is written.
        """
        learned = {part: checkpoint[part] for part in LEARNED if part in checkpoint}
        if (name := first_nonfinite(named_tensors(learned))) is not None:
            raise NumericalError(
                f"{path}: not saved, since {name} is not finite; older checkpoints are kept: go on from the newest "
                "(resume=auto) with a lower learning rate"
            )
        progress = {"epoch": checkpoint.get("epoch"), "global_step": checkpoint.get("global_step")}
        state, path = with_plain_records(checkpoint), Path(path)
        if path.is_dir() and not path.is_symlink() and foreign(path):
            path.rename(free_name(path, "damaged"))

        def write(folder: Path) -> None:
            write_state(folder, state)
            if self.config:
                (folder / CONFIG).write_text(self.config, encoding="utf-8")

        write_folder(path, write, {"stage": STAGE, **progress}, size=state_size(state))
        self._written.add(path)

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Raise `CheckpointError` where `save_checkpoint` would because of what the state holds; writes nothing."""
        state_size(with_plain_records(checkpoint))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify and read; tensors come back on the CPU.

        Raises:
            CheckpointError: a file is missing, was changed or is damaged; or the path is not a checkpoint folder.
        """
        if Path(path).is_file():
            raise CheckpointError(
                f"{path}: is a file; checkpoints of this library are folders. Use Lightning's own checkpoint_io for it"
            )
        verify_folder(path, expect_stage=STAGE)
        return read_state(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint.

        Raises:
            CheckpointError: it is damaged, or holds files that this library has not written; nothing is deleted.
        """
        remove_folder(Path(path), whole=Path(path) not in self._written)


END = "end"
"""Name of the checkpoint from which a stage that has finished can be made longer, beside the folders ``step-N``."""


def checkpoints(folder: str | Path) -> list[Path]:
    """The ``step-N`` folders under ``folder`` that were written whole, newest (highest N) first; not verified."""
    found = [(int(m[1]), path) for path in Path(folder).glob("step-*") if (m := _NUMBERED.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_checkpoint(folder: str | Path, skipped: Callable[[str], None]) -> Path | None:
    """The newest checkpoint under ``folder`` whose files are all as they were written; None if there is no checkpoint.

    Args:
        folder: with ``step-N`` folders, or not there at all.
        skipped: told about each newer checkpoint that cannot be used, and why.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be used; names each reason. Nothing is deleted.
    """
    reasons: dict[str, str] = {}
    for path in checkpoints(folder):
        try:
            verify_folder(path, expect_stage=STAGE)
        except CheckpointError as error:
            reasons[path.name] = str(error)
            continue
        for name, reason in reasons.items():
            skipped(f"skipped the checkpoint {name}: {reason}")
        return path
    if reasons:
        raise CheckpointError(
            f"{folder}: none of {len(reasons)} checkpoints can be used, and none is deleted:\n  "
            + "\n  ".join(reasons.values())
            + "\nRestore one of them, or train again from the start in another run_dir"
        )
    return None


def expired(folder: str | Path, step: int, keep: int, good: Callable[[Path], bool]) -> list[Path]:
    """What may go once the checkpoint of ``step`` is complete: all but the newest ``keep`` that are good.

    Checkpoints of later steps go too. The run has gone back behind them, because they are damaged or because it was
    told to, so they belong to another past; as the newest ones they would push out those of this run.

    Args:
        folder: with ``step-N`` folders.
        step: the newest of this run.
        keep: how many stay.
        good: whether a checkpoint is known to be whole; asked until ``keep`` are.
    """
    found = checkpoints(folder)
    kept: list[Path] = []
    for path in found:
        if len(kept) < keep and int(path.name.removeprefix("step-")) <= step and good(path):
            kept.append(path)
    return [path for path in found if path not in kept]


def is_checkpoint(path: str | Path) -> bool:
    """Whether a folder says of itself that it is a checkpoint; its files are not looked at."""
    return (read_provenance(path) or {}).get("stage") == STAGE
