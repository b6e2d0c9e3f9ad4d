"""What an earlier run has left where this one wants to begin: refused, or kept aside until the new one is complete."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.io import checkpoints
from rlhf_lightning.checkpoint.places import foreign, free_name, lock, named, remove_folder
from rlhf_lightning.checkpoint.provenance import MARK, read_provenance, read_sealed
from rlhf_lightning.errors import CheckpointError, ConfigError, DiskError
from rlhf_lightning.evaluation.report import CAPTIONS
from rlhf_lightning.rules.stages import names
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
)  # fmt: skip

log = logging.getLogger(__name__)
EVALUATED = ("report.md", "report.html", "evaluation.json")
_OURS = (
    CONFIG, RECORD, LOG, *EVALUATED, f"{HISTORY}/*.csv",
    *(f"figures/{name}.png" for name in CAPTIONS), "tensorboard/*/events.out.tfevents.*", "tensorboard/*/hparams.yaml",
    "tensorboard/*/by_*/events.out.tfevents.*", "csv/*/version_*/*.csv", "csv/*/version_*/hparams.yaml",
    "bad_batches/*/step-*/rank-*/state.json", "bad_batches/*/step-*/rank-*/tensors.safetensors",
)  # fmt: skip
"""The files that a run makes in its entries, besides folders with a record; what else is there is the user's."""


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
    if resume != "auto" and in_the_way(folder, names(config["stages"])):
        if not overwrite:
            raise ConfigError(
                f"run_dir={folder}: holds an earlier run ({_left(folder)}). Choose one of\n"
                "  resume=auto       to go on where it stopped, and to keep what is finished\n"
                "  run_dir=ANOTHER   to run beside it\n"
                "  overwrite=true    to replace it; it is kept aside until the new run is complete"
            )
        moved = _move_aside(folder, config)
    for stage in names(config["stages"]):
        for output in outputs(config.get(stage) or {}):
            _check_output(Path(output), stage, resume, overwrite)
    return moved


def in_the_way(folder: Path, stages: Sequence[str]) -> bool:
    """Whether these stages would replace what a run has left in a folder, or the config that it needs to go on.

    What other stages have finished there may stay: stages may be run one by one in one folder.
    """
    finished, unfinished = stages_in(folder)
    return bool(unfinished) or not finished.isdisjoint(stages)


def stages_in(folder: Path) -> tuple[set[str], set[str]]:
    """The stages that have finished in a folder, and those that have only begun."""
    finished = {stage for _, stage in _models(folder)}
    finished |= {"evaluate"} if any((folder / name).exists() for name in EVALUATED) else set()
    return finished, begun_in(folder) - finished


def begun_in(folder: Path) -> set[str]:
    """The stages with a row or a checkpoint in a folder."""
    return _logged(folder) | {entry.name for entry in (folder / CHECKPOINTS).glob("*") if checkpoints(entry)}


def put_back(folder: Path) -> None:
    """Undo what a crash has stopped half-way: the moving aside of an earlier run, see `make_room`."""
    folder = named(folder)
    for mark in sorted(folder.parent.glob(f"{glob.escape(folder.name)}.replaced-*/{MARK}")):
        if mark.parent.is_symlink():
            continue
        with lock(folder, inside=True):
            for entry in sorted(mark.parent.iterdir()):
                if entry != mark:
                    _give_back(entry, folder / entry.name)
            mark.unlink()
            with suppress(OSError):
                mark.parent.rmdir()


def _give_back(entry: Path, place: Path) -> None:
    """Move an entry to its place, or what is in it where the place is a folder that stayed."""
    if not os.path.lexists(place):
        entry.rename(place)
    elif entry.is_dir() and place.is_dir() and not place.is_symlink():
        for inside in sorted(entry.iterdir()):
            _give_back(inside, place / inside.name)
        with suppress(OSError):
            entry.rmdir()


def clear_away(aside: Path) -> None:
    """Delete what `make_room` has moved, as far as this library has written it; the rest stays and is named."""
    for entry in sorted(aside.rglob("*"), reverse=True):  # what is in a folder before the folder
        with suppress(CheckpointError, OSError):
            if entry.is_symlink():
                continue
            if entry.is_dir():
                remove_folder(entry) if any(entry.iterdir()) else entry.rmdir()
            elif _is_ours(entry.relative_to(aside)) and _is_loose(entry, aside):
                entry.unlink()
    with suppress(OSError):
        aside.rmdir()
    if aside.exists():
        log.warning(f"{aside}: holds what this library has not written, or what was changed since; it stays")


def _is_ours(file: Path) -> bool:
    return any(file.match(name) and len(file.parts) == name.count("/") + 1 for name in _OURS)


def _is_loose(file: Path, top: Path) -> bool:
    """Whether a file is in no folder that has a record of its own, which is deleted whole or not at all."""
    above = [folder for folder in file.parents if folder.is_relative_to(top)]
    return not any((folder / "provenance.json").exists() for folder in above)


def check_owner(folder: Path) -> None:
    """Refuse a folder in which something stands where a run would write, unless a run of this library made it.

    Raises:
        CheckpointError: names the entry.
    """
    if record_of(folder):
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
    rows = sorted(_logged(folder))
    found = [f"checkpoints of {', '.join(saved)}"] * bool(saved) + [f"history of {', '.join(rows)}"] * bool(rows)
    models = [model.name for model, _ in _models(folder)]
    found += [f"finished: {', '.join(models)}"] * bool(models)
    found += [name for name in EVALUATED if (folder / name).exists()]
    return "; ".join(found)


def record_of(folder: Path) -> dict[str, Any]:
    """The record of the run that made a folder; empty if none did."""
    with suppress(CheckpointError):
        record = read_sealed(folder / RECORD)
        return record if record.get("kind") == "run" else {}
    return {}


def _models(folder: Path) -> Iterator[tuple[Path, str]]:
    """What stages have finished in a run's folder, by its record, and which stage it was."""
    for name in record_of(folder).get("outputs", ()):
        with suppress(CheckpointError, OSError):
            found = read_provenance(folder / name) if (folder / name).is_dir() else None
            if found is not None:
                yield folder / name, str(found.get("stage"))


def _logged(folder: Path) -> set[str]:
    """The stages with rows in their history."""
    return {file.stem for file in (folder / HISTORY).glob("*.csv") if file.read_bytes().count(b"\n") > 1}


def _move_aside(folder: Path, config: Mapping[str, Any]) -> Path:
    """Move what these stages have made in a folder, and what has only begun there, to a place beside it."""
    stages = {*names(config["stages"]), *stages_in(folder)[1]}
    kept = [
        f"{part}/{stage}"
        for stage in stages
        for part in (CHECKPOINTS, "tensorboard", "bad_batches", "reference_logprobs")
    ]
    kept += [f"{HISTORY}/{stage}.csv" for stage in stages]
    kept += [*EVALUATED, "figures"] if "evaluate" in stages else []
    there = [folder / name for name in kept if (folder / name).exists()]
    there += [model for model, stage in _models(folder) if stage in stages]
    makers = written(config).items()
    for key, text in inputs(config):
        path = Path(text).resolve()
        made = [name for name, place in makers if path.is_relative_to(place.resolve())]
        again = any(is_made_before(name, key, config["stages"]) for name in made)  # by this run, before it is read
        if not again and any(path.is_relative_to(entry.resolve()) for entry in there):
            raise ConfigError(f"overwrite=true: {key} reads {text}, which is part of the run to be replaced ({folder})")
    aside = free_name(folder, "replaced")
    try:
        aside.mkdir()
        (aside / MARK).touch()  # until all is there, see `put_back`
        for entry in there:
            place = aside / entry.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            entry.rename(place)
        (aside / MARK).unlink()
    except OSError as error:
        raise DiskError(f"{aside}: the earlier run cannot be kept here ({error}); choose another run_dir") from error
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
