"""Where a run writes, judged before anything is trained: never over or around what the user has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.places import LOCK, foreign, links
from rlhf_lightning.checkpoint.provenance import read_provenance
from rlhf_lightning.config.tree import walk
from rlhf_lightning.data.readers.places import exists
from rlhf_lightning.errors import CheckpointError, ConfigError, DataError
from rlhf_lightning.rules.stages import STAGES, names, stage_of

CONFIG, RECORD, LOG = "config.yaml", "run.json", "train.log"
CHECKPOINTS, HISTORY = "checkpoints", "history"
ENTRIES = (
    CONFIG, RECORD, CHECKPOINTS, HISTORY, "tensorboard", "csv", "wandb", "mlflow", "comet", "trackio", "figures",
    "report.md", "report.html", "evaluation.json", "bad_batches", "reference_logprobs",
    "lightning_logs", LOG,
)  # fmt: skip
"""What a run makes in its folder, besides the outputs of its stages."""
_READ = re.compile(
    r"\.(policy|reference|critic|proxy|reward|rows|human_ranks|train|validation|model\.path|policies\.[^.]+)$"
)
_ROWS = re.compile(r"\.(rows|human_ranks|train|validation)$")
_WRITTEN = (".output", ".folder", ".dirpath", "_dir")  # how keys of places that are written end


def outputs(section: Mapping[str, Any]) -> list[str]:
    """The folders that a stage writes, the last one when it is done: `best_of_n` also fine-tunes on what it wrote."""
    found = (section.get("output"), (section.get("sft") or {}).get("output"))
    return [output for output in found if output]


def written(config: Mapping[str, Any]) -> dict[str, Path]:
    """Key and folder of all that the stages and the task of a config write outside of the run's own entries."""
    found: dict[str, Path] = {}
    for stage in names(config["stages"]):
        section = config.get(stage) or {}
        for key, part in ((stage, section), (f"{stage}.sft", section.get("sft") or {})):
            if part.get("output"):
                found[f"{key}.output"] = Path(part["output"])
        best = section.get("best_policy")
        if isinstance(best, Mapping) and best.get("folder"):
            found[f"{stage}.best_policy.folder"] = Path(best["folder"])
    task = config.get("task") or {}
    for key, node in {"task": task, **{f"task.{name}": node for name, node in task.items()}}.items():
        if isinstance(node, Mapping) and node.get("root"):
            found[f"{key}.root"] = Path(node["root"])
    return found


def check_places(config: Mapping[str, Any]) -> None:
    """Refuse places that are the user's, before anything is made or trained.

    Raises:
        ConfigError: a place is or holds the working folder, the home folder, the run's folder, another place, or a
            model or file that the run reads; names the key.
        CheckpointError: something is there that this library has not written.
    """
    places = written(config)
    kept = {"the working folder": Path.cwd(), "your home folder": Path.home(), "run_dir": Path(config["run_dir"])}
    kept |= {"output_root": Path(config["output_root"])} if config.get("output_root") else {}
    kept |= {f"the run's own {name}": Path(config["run_dir"]) / name for name in ENTRIES}
    for key, place in places.items():
        for what, other in kept.items():
            if _holds(place, other):
                raise ConfigError(f"{key}={place}: is or holds {what} ({other}); choose a folder of its own")
            if what.startswith("the run's own") and _holds(other, place):
                raise ConfigError(f"{key}={place}: lies in {what}; choose a folder of its own")
        for name, other in places.items():
            if name != key and _holds(place, other):
                raise ConfigError(f"{key}={place}: is or holds {name} ({other}); choose a folder of its own")
    read = list(inputs(config))
    for key, place in places.items():
        for name, path in read:
            if _holds(place, Path(path)) and not is_made_before(key, name, config["stages"]):
                raise ConfigError(
                    f"{key}={place}: is or holds {name} ({path}), which the run reads; choose another one"
                )
        if (reason := foreign(place, whole=False)) and not _is_kept(config, key, place):
            raise CheckpointError(f"{key}={place}: {reason}; nothing was changed. Choose another place")


def check_reads(config: Mapping[str, Any]) -> None:
    """Refuse a chain in which a stage reads what is not there and no stage before it makes.

    Raises:
        ConfigError: names the key, and which stage would make it.
        DataError: a file of rows is not there.
    """
    makers = {stage: outputs(config.get(stage) or {}) for stage in (*STAGES, *names(config["stages"]))}
    made: list[str] = []
    for stage in map(stage_of, config["stages"]):
        made += makers[stage.name]
        for group in (*stage.asks, stage.name):
            for key, text in _texts(config.get(group), group):
                if not _READ.search(key) or _is_there(text) or _within(text, made):
                    continue
                if maker := next((name for name, folders in makers.items() if _within(text, folders)), None):
                    raise ConfigError(
                        f"{key}={text}: is not there when {stage.name} begins; put {maker}, which makes it, before "
                        f"{stage.name} in stages, or give the {maker}.output of an earlier run"
                    )
                if _ROWS.search(key) and not exists(text):
                    raise DataError(f"{text}: no such file; check {key} (relative paths start at {Path.cwd()}).")


def check_entries(folder: Path) -> None:
    """Refuse a run folder in which something stands where a run would write, or that leads elsewhere.

    Raises:
        CheckpointError: names the entry.
    """
    if folder.is_symlink():
        raise CheckpointError(f"run_dir={folder}: is a link; give the folder that it leads to")
    for entry in (folder / name for name in (*ENTRIES, LOCK)):
        if (link := next(links(entry), None)) is not None:
            raise CheckpointError(
                f"run_dir={folder}: {link.relative_to(folder)} is a link or a device; a run writes there and follows "
                "none. Remove it or choose another run_dir"
            )


def _within(text: str, folders: Sequence[str]) -> bool:
    return any(_holds(Path(folder), Path(text)) for folder in folders)


def _holds(place: Path, other: Path) -> bool:
    """Whether a folder is another one, or one above it."""
    return other.resolve().is_relative_to(place.resolve())


def _is_kept(config: Mapping[str, Any], key: str, place: Path) -> bool:
    """Whether a place is the output of a stage that is done and will only be read."""
    if config["resume"] != "auto" or config.get("overwrite") or not place.is_dir() or place.is_symlink():
        return False
    return (read_provenance(place) or {}).get("stage") == key.partition(".")[0]


def is_made_before(place: str, read: str, stages: Sequence[str]) -> bool:
    """Whether the run writes what stands under the key ``place`` before it reads what stands under ``read``."""
    if place.startswith("task"):
        return True
    order = [
        part for stage in names(stages) for part in (stage, f"{stage}.sft")
    ]  # `best_of_n` fine-tunes on what it wrote
    writer, reader = (max((o for o in order if f"{key}.".startswith(f"{o}.")), default="") for key in (place, read))
    if not reader:  # of no stage: judges and data may come from a stage, and the model is there from the start
        return not read.startswith("model.")
    return order.index(writer) < order.index(reader)


def inputs(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and path of everything that a config names and that is there, besides the places it writes to."""
    idle = {"run_dir", "output_root", "task", "hydra", "logger", "checkpoint", *STAGES} - set(names(config["stages"]))
    for name, section in config.items():
        if name not in idle:
            texts = _texts(section, name)
            yield from ((key, text) for key, text in texts if not key.endswith(_WRITTEN) and _is_there(text))


def _texts(tree: Any, key: str) -> Iterator[tuple[str, str]]:
    for path, value, *_ in walk(tree):
        if isinstance(value, str):
            yield ".".join([key, *(str(name) for name in path if not isinstance(name, int))]), value


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or with NUL: no path
        return False
