"""What an earlier run has left where this one wants to begin: refused, or kept aside until the new one is complete."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.io import checkpoints
from rlhf_lightning.checkpoint.places import foreign, free_name, remove_folder
from rlhf_lightning.checkpoint.provenance import read_provenance, read_sealed
from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.stages.places import (
    CHECKPOINTS,
    CONFIG,
    ENTRIES,
    HISTORY,
    LOG,
    RECORD,
    inputs,
    is_made_before,
    outputs,
    written,
)

log = logging.getLogger(__name__)
_OURS = (CONFIG, RECORD, LOG, "report.md", "evaluation.json", "*.csv", "*.png", "events.out.tfevents.*", "hparams.yaml",
         "state.json", "tensors.safetensors")  # fmt: skip
"""Names of the files that a run makes in its entries."""


def make_room(config: Mapping[str, Any]) -> Path | None:
    """See that the run may begin where it is told to, and move an earlier run aside if it is to be replaced.

    Returns:
        where the earlier run is kept, for `clear_away`; None if there was none.

    Raises:
        ConfigError: an earlier run has left something and is neither resumed nor to be replaced.
        CheckpointError: an output that is to be replaced was changed.
    """
    folder, resume, overwrite = Path(config["run_dir"]), config["resume"], bool(config.get("overwrite"))
    moved = None
    if resume != "auto" and holds_a_run(folder):
        if not overwrite:
            raise ConfigError(
                f"run_dir={folder}: holds an earlier run ({_left(folder)}). Choose one of\n"
                "  resume=auto       to go on where it stopped, and to keep what is finished\n"
                "  run_dir=ANOTHER   to run beside it\n"
                "  overwrite=true    to replace it; it is kept aside until the new run is complete"
            )
        moved = _move_aside(folder, config)
    for stage in config["stages"]:
        for output in outputs(config.get(stage) or {}):
            _check_output(Path(output), stage, resume, overwrite)
    return moved


def holds_a_run(folder: Path) -> bool:
    """Whether a run has left something in a folder that is worth keeping: a row, a checkpoint, a model, a report."""
    return bool(_left(folder))


def clear_away(aside: Path) -> None:
    """Delete what `make_room` has moved, as far as this library has written it; the rest stays and is named."""
    for entry in sorted(aside.rglob("*"), reverse=True):  # what is in a folder before the folder
        with suppress(CheckpointError, OSError):
            if entry.is_symlink():
                continue
            if entry.is_dir():
                remove_folder(entry) if any(entry.iterdir()) else entry.rmdir()
            elif any(entry.match(name) for name in _OURS) and _is_loose(entry, aside):
                entry.unlink()
    with suppress(OSError):
        aside.rmdir()
    if aside.exists():
        log.warning(f"{aside}: holds what this library has not written, or what was changed since; it stays")


def _is_loose(file: Path, top: Path) -> bool:
    """Whether a file is in no folder that has a record of its own, which is deleted whole or not at all."""
    above = [folder for folder in file.parents if folder.is_relative_to(top)]
    return not any((folder / "provenance.json").exists() for folder in above)


def check_owner(folder: Path) -> None:
    """Refuse a folder in which something stands where a run would write, unless a run of this library made it.

    Raises:
        CheckpointError: names the entry.
    """
    if _record(folder):
        return
    for name in ENTRIES:
        entry = folder / name
        if entry.is_file() or (entry.is_dir() and any(entry.iterdir())):
            raise CheckpointError(
                f"run_dir={folder}: holds {name}, which no run of this library has made; choose another run_dir, or "
                "move it away"
            )


def _left(folder: Path) -> str:
    """What a run has left in a folder, in words."""
    saved = [stage.name for stage in sorted((folder / CHECKPOINTS).glob("*")) if checkpoints(stage)]
    rows = [file.stem for file in sorted((folder / HISTORY).glob("*.csv")) if file.read_bytes().count(b"\n") > 1]
    found = [f"checkpoints of {', '.join(saved)}"] * bool(saved) + [f"history of {', '.join(rows)}"] * bool(rows)
    models = [entry.name for entry in _models(folder)]
    found += [f"finished: {', '.join(models)}"] * bool(models)
    found += [name for name in ("report.md", "evaluation.json") if (folder / name).exists()]
    return "; ".join(found)


def _models(folder: Path) -> Iterator[Path]:
    """What the stages of the run that made a folder have finished in it, by its record."""
    for name in _record(folder).get("outputs", ()):
        with suppress(CheckpointError, OSError):
            if (folder / name).is_dir() and read_provenance(folder / name) is not None:
                yield folder / name


def _record(folder: Path) -> dict[str, Any]:
    """The record of the run that made a folder; empty if none did."""
    with suppress(CheckpointError):
        record = read_sealed(folder / RECORD)
        return record if record.get("kind") == "run" else {}
    return {}


def _move_aside(folder: Path, config: Mapping[str, Any]) -> Path:
    """Move all that a run has made in its folder to a place beside it."""
    there = [entry for entry in (*(folder / name for name in ENTRIES), *_models(folder)) if entry.exists()]
    places = written(config)
    for key, text in inputs(config):
        path = Path(text).resolve()
        if any(
            path.is_relative_to(p.resolve()) and is_made_before(name, key, config["stages"])
            for name, p in places.items()
        ):
            continue  # of the earlier run, and this one makes it again before it is read
        if any(path.is_relative_to(entry.resolve()) for entry in there):
            raise ConfigError(f"overwrite=true: {key} reads {text}, which is part of the run to be replaced ({folder})")
    aside = free_name(folder, "replaced")
    aside.mkdir()
    for entry in there:
        (aside / entry.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        entry.rename(aside / entry.relative_to(folder))
    log.warning(f"{folder}: the earlier run is kept in {aside} until this one is complete")
    return aside


def _check_output(output: Path, stage: str, resume: str, overwrite: bool) -> None:
    """Refuse to replace what an earlier run has finished elsewhere, unless it is to be replaced."""
    record = read_provenance(output) if output.is_dir() else None
    if record is None or (resume == "auto" and record.get("stage") == stage):
        return
    if not overwrite:
        raise ConfigError(
            f"{stage}: {output} holds what the stage {record.get('stage')} of an earlier run has made. Choose one of\n"
            f"  resume=auto               to use it as it is (if it is of the stage {stage})\n"
            "  another output            to keep both\n"
            "  overwrite=true            to replace it once the new one is complete"
        )
    if reason := foreign(output):
        raise CheckpointError(f"{output}: {reason}; it is not replaced. Choose another output")
    log.warning(f"{output}: is replaced when the new one is complete")
