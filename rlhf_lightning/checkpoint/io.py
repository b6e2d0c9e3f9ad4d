"""Checkpoints for Lightning as verified folders: complete or not there at all, and nothing in them can run code."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from rlhf_lightning.checkpoint.codec import Encoded, Files, encode, read_tensors, read_tree, write_first, write_tree
from rlhf_lightning.checkpoint.folders import write_folder
from rlhf_lightning.checkpoint.hyperparameters import with_plain_records
from rlhf_lightning.checkpoint.nonfinite import first_nonfinite
from rlhf_lightning.checkpoint.places import foreign, free_name, remove_folder
from rlhf_lightning.checkpoint.processes import Processes, attempt, results
from rlhf_lightning.checkpoint.provenance import read_provenance, verify_folder
from rlhf_lightning.checkpoint.tensors import file_of, write_tensors
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

    Attributes:
        writers: the processes that save together, each its rows of what they share; one alone as long as nobody says
            otherwise, as `DurableModelParallelStrategy` does.
        readers: the processes that load together, each of which looks at a part of the files.
    """

    def __init__(self, config: str = "") -> None:
        self.config = config
        self.writers = self.readers = Processes()
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the state of a run. All `writers` call it; what one of them raises is raised in all.

        Raises:
            DiskError: the place cannot be written to, or is full.
            CheckpointError: the state holds what cannot be stored.
            NumericalError: weights or optimizer state are not finite; nothing is written.
        """
        path, writers = Path(path), self.writers
        own, error = attempt(partial(_encoded, checkpoint, path))
        starts = results(writers.gather((own.starts if own else {}, error)))
        assert own is not None
        if writers.index:
            return _join(writers, own)
        own.tell(starts)

        def write(folder: Path) -> Files:
            writers.first((folder, list(own.shared)))
            parts = results(writers.gather(attempt(partial(write_first, folder, own))))
            write_tree(folder, own)
            if self.config:
                (folder / CONFIG).write_text(self.config, encoding="utf-8")
            return {name: entry for part in parts for name, entry in part.items()}

        progress = {"epoch": checkpoint.get("epoch"), "global_step": checkpoint.get("global_step")}
        try:
            if path.is_dir() and not path.is_symlink() and foreign(path):
                path.rename(free_name(path, "damaged"))
            write_folder(path, write, {"stage": STAGE, **progress}, size=own.size)
        except Exception as error:
            writers.first(error)
            raise
        writers.first(None)
        self._written.add(path)

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Raise `CheckpointError` where `save_checkpoint` would because of what the state holds; writes nothing."""
        encode(with_plain_records(checkpoint))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify and read; tensors come back on the CPU. All `readers` call it.

        Raises:
            CheckpointError: a file is missing, was changed or is damaged; or the path is not a checkpoint folder.
        """
        loaded: dict[str, Any] = read_tensors(self.open_checkpoint(path))
        return loaded

    def open_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """The same with a `Stored` in the place of each tensor, which is read when it is asked for."""
        if Path(path).is_file():
            raise CheckpointError(
                f"{path}: is a file; checkpoints of this library are folders. Use Lightning's own checkpoint_io for it"
            )
        verify_checkpoint(Path(path), self.readers)
        return read_tree(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint.

        Raises:
            CheckpointError: it is damaged, or holds files that this library has not written; nothing is deleted.
        """
        remove_folder(Path(path), whole=Path(path) not in self._written)


def verify_checkpoint(path: Path, readers: Processes) -> None:
    """Check a checkpoint; each of the ``readers`` computes the checksums of some of its files.

    Raises:
        CheckpointError: in all of them; see `rlhf_lightning.checkpoint.verify_folder`.
    """
    readers.agree(lambda: bool(verify_folder(path, STAGE, (readers.index, readers.size))))


def _encoded(checkpoint: dict[str, Any], path: Path) -> Encoded:
    """What the files of a checkpoint hold, if what was learned is finite in this process."""
    encoded = encode(with_plain_records(checkpoint))
    tensors = encoded.tensors | {name: rows.local for name, rows in encoded.rows.items()}
    if (name := first_nonfinite((n, t) for n, t in tensors.items() if n.partition(".")[0] in LEARNED)) is not None:
        raise NumericalError(
            f"{path}: not saved, since {name} is not finite; older checkpoints are kept: go on from the newest "
            "(resume=auto) with a lower learning rate"
        )
    return encoded


def _join(writers: Processes, encoded: Encoded) -> None:
    """What all but the first of the ``writers`` do: wait for a folder, write, and hear what became of it."""
    said: Any = writers.first(None)
    if not isinstance(said, Exception):
        folder, names = said
        writers.gather(attempt(partial(_write_rows, encoded, names, folder / file_of(writers.index))))
        said = writers.first(None)
    if said is not None:
        raise said


def _write_rows(encoded: Encoded, names: list[str], file: Path) -> Files:
    """Write the rows of one process; no file where it has none."""
    rows = encoded.own_rows(names)
    return {file.name: write_tensors(file, rows)} if rows else {}


END = "end"
"""Name of the checkpoint from which a stage that has finished can be made longer, beside the folders ``step-N``."""


def checkpoints(folder: str | Path) -> list[Path]:
    """The ``step-N`` folders under ``folder`` that were written whole, newest (highest N) first; not verified."""
    found = [(int(m[1]), path) for path in Path(folder).glob("step-*") if (m := _NUMBERED.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_checkpoint(
    folder: str | Path, skipped: Callable[[str], None], readers: Processes | None = None
) -> Path | None:
    """The newest checkpoint under ``folder`` whose files are all as they were written; None if there is no checkpoint.

    Args:
        folder: with ``step-N`` folders, or not there at all.
        skipped: told about each newer checkpoint that cannot be used, and why.
        readers: the processes that ask together; each of them looks at a part of the files.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be used; names each reason. Nothing is deleted.
    """
    reasons: dict[str, str] = {}
    for path in checkpoints(folder):
        try:
            verify_checkpoint(path, readers or Processes())
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
