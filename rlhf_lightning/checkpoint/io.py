"""Checkpoints for Lightning as verified folders: complete or not there at all, and nothing in them can run code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from rlhf_lightning.checkpoint.codec import read_state, write_state
from rlhf_lightning.checkpoint.finite import first_nonfinite, named_tensors
from rlhf_lightning.checkpoint.handover import read_provenance, verify_folder, write_folder
from rlhf_lightning.errors import CheckpointError, NumericalError

STAGE = "checkpoint"
LEARNED = ("state_dict", "optimizer_states")
_NUMBERED = re.compile(r"step-(\d+)")


class DurableCheckpointIO(CheckpointIO):
    """What the Trainer saves and loads with: ``Trainer(plugins=[DurableCheckpointIO()])``.

    `ModelCheckpoint` and ``fit(ckpt_path=FOLDER)`` work as always, except that a checkpoint is a folder: tensors as
    safetensors, the rest as JSON, and a SHA-256 of every file, which is checked before anything is loaded. It is
    written beside its place, flushed and renamed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the state of a run.

        Raises:
            CheckpointError: the place cannot be written to, or the state holds what cannot be stored.
            NumericalError: weights or optimizer state are not finite; nothing is written.
        """
        learned = {part: checkpoint[part] for part in LEARNED if part in checkpoint}
        if (name := first_nonfinite(named_tensors(learned))) is not None:
            raise NumericalError(
                f"{path}: not saved, since {name} is not finite; older checkpoints are kept: go on from the newest "
                "(resume=auto) with a lower learning rate"
            )
        progress = {"epoch": checkpoint.get("epoch"), "global_step": checkpoint.get("global_step")}
        write_folder(path, lambda folder: write_state(folder, checkpoint), {"stage": STAGE, **progress})

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
        """Delete a checkpoint."""
        shutil.rmtree(path, ignore_errors=True)


def checkpoints(folder: str | Path) -> list[Path]:
    """The ``step-N`` folders under ``folder`` that were written whole, newest (highest N) first; not verified."""
    found = [(int(m[1]), path) for path in Path(folder).glob("step-*") if (m := _NUMBERED.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_checkpoint(folder: str | Path, skipped: Callable[[str], None]) -> Path | None:
    """The newest checkpoint under ``folder`` whose files are all as they were written, or None.

    Args:
        folder: with ``step-N`` folders, or not there at all.
        skipped: told about each newer checkpoint that cannot be used, and why.
    """
    for path in checkpoints(folder):
        try:
            verify_folder(path, expect_stage=STAGE)
        except CheckpointError as error:
            skipped(f"skipped the checkpoint {path.name}: {error}")
        else:
            return path
    return None


def is_checkpoint(path: str | Path) -> bool:
    """Whether a folder says of itself that it is a checkpoint; its files are not looked at."""
    return (read_provenance(path) or {}).get("stage") == STAGE
