"""What runs have left in their folders: how far each came, its main numbers, and several side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhf_lightning.checkpoint.places import is_locked
from rlhf_lightning.checkpoint.provenance import read_provenance, read_sealed
from rlhf_lightning.console import display
from rlhf_lightning.errors import CheckpointError, DataError
from rlhf_lightning.evaluation.conclusion import opponent, rate_text, winner
from rlhf_lightning.evaluation.history import HistoryRow, read_histories, series
from rlhf_lightning.evaluation.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, curve, label, legend, panels
from rlhf_lightning.evaluation.report import read_evaluation
from rlhf_lightning.rules.stages import STAGES, names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORD, CONFIG = "run.json", "config.yaml"
_MAIN = {  # tags of the history that tell how a stage went, and what they are called
    "sft": {"val/loss": "sft loss"},
    "reward": {"val/accuracy": "reward accuracy"},
    "ppo": {"objective/scores": "ppo score", "objective/kl": "ppo KL"},
    "dpo": {"val/loss": "dpo loss", "val/rewards/accuracies": "dpo accuracy"},
    "kto": {"val/loss": "kto loss"},
}
_MADE = {  # the same of stages without a history, in the record of what they have made
    "score": {"score/mean": "mean score", "score/RewardBench 2/mean": "RewardBench 2"},
}
_LIMITS = {"ppo": "rollouts"}  # where the config says how many steps a stage takes
_OF_THE_RUN = {"run_dir", "resume", "overwrite", "stages", "stage_name", "trusted_targets"}
_PLACES = ("run_dir", "output", "output_root", "folder", "root", "dir", "policy", "train", "validation", "reference")
_COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, GREY)


@dataclass(frozen=True)
class RunSummary:
    """One run."""

    folder: Path
    stages: tuple[str, ...]
    finished: tuple[str, ...]  # stages
    state: str  # finished, failed, stopped, running, or interrupted where nobody works there any more
    place: str  # how far the stage came that was not finished, for example "ppo 12/60"; empty if all were
    began: float  # seconds since the epoch
    numbers: dict[str, str] = field(default_factory=dict)  # by what they are, written


def runs_in(folder: Path) -> list[RunSummary]:
    """Every run in a folder and below it, the newest last.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; runs lie in runs/ unless output_root or run_dir says otherwise")
    found = [summary for file in folder.rglob(RECORD) if (summary := _read(file.parent)) is not None]
    return sorted(found, key=lambda summary: summary.began)


def read_run(folder: Path) -> RunSummary:
    """The run in a folder.

    Raises:
        DataError: there is none.
    """
    if (summary := _read(folder)) is None:
        raise DataError(f"{folder}: no run of this library has left a {RECORD} there")
    return summary


def numbers_of(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The last main numbers of every stage, and what the judge said of the newest policy, by name.

    Args:
        folder: of a run.
        records: by stage, the provenance of what the run has made.
    """
    found: dict[str, str] = {}
    for stage, tags in _MADE.items():
        metrics = records.get(stage, {}).get("metrics") or {}
        found |= {name: f"{metrics[tag]:z.3f}" for tag, name in tags.items() if tag in metrics}
    for stage, rows in read_histories(folder).items():
        tags = _MAIN.get(stage, {"train/loss": f"{stage} loss"})
        found |= {name: f"{values[-1]:z.3f}" for tag, name in tags.items() if (values := series(rows, tag)[1])}
    with suppress(DataError):
        evaluation = read_evaluation(folder)
        new, old, judge = winner(evaluation), opponent(evaluation), evaluation["judge"]
        summary = evaluation["policies"][new]["summary"]
        score, kl = summary["scores"][judge], summary.get("kl")
        error = "" if score["stderr"] is None else f" ± {score['stderr']:.3f}"
        found[f"{judge} (judge)"] = f"{score['mean']:z.3f}{error}"
        found |= {"KL": f"{kl['mean']:z.2f}"} if kl else {}
        if result := evaluation["win_rates"].get(f"{new} vs {old}"):
            found[f"{new} beats {old}"] = rate_text(result["win_rate"], result["low"], result["high"])
    return found


def settings_that_differ(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Keys that all configs have and that are not the same in all runs, with their values.

    Left out are places, and the sections of stages that not all of the runs have.
    """
    configs = [_config(folder) for folder in folders]
    trees = [flattened(config) for config in configs]
    ran: list[set[str]] = [set(names(config.get("stages") or ())) for config in configs]
    idle = {*STAGES, *(stage for stages in ran for stage in stages)} - ran[0].intersection(*ran) | _OF_THE_RUN
    found: dict[str, list[str]] = {}
    for key in trees[0]:
        values = [str(tree[key]) for tree in trees if key in tree]
        place = key.rpartition(".")[2].endswith(_PLACES) or _is_place(values, folders)
        if len(values) == len(trees) and len(set(values)) > 1 and key.split(".")[0] not in idle and not place:
            found[key] = values
    return found


def comparison_figure(runs: Mapping[str, Path]) -> Figure | None:
    """The training curves that the runs have, each run in a colour of its own; None where there are none.

    Args:
        runs: folders by the names to show.
    """
    histories = {name: read_histories(folder) for name, folder in runs.items()}
    tags = list(dict.fromkeys(tag for history in histories.values() for tag in _tags(history)))
    if not tags:
        return None
    figure, axes = panels(len(tags), "Runs")
    for axis, (stage, tag, name) in zip(axes, tags, strict=True):
        for number, (run, history) in enumerate(histories.items()):
            if series(history.get(stage, []), tag)[0]:
                kept = [{**row, "kind": "train"} for row in history[stage] if tag in row]
                curve(axis, kept, tag, _COLOURS[number % len(_COLOURS)], display.label(run))
        label(axis, "rollout" if stage == "ppo" else "optimizer step", name)
        legend(axis)
    return figure


def flattened(tree: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key.

    >>> flattened({"a": {"b": 1}, "c": []})
    {'a.b': 1, 'c': []}
    """
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping) and bool(value)
        found |= flattened(value, f"{key}{name}.") if inner else {f"{key}{name}": value}
    return found


def _read(folder: Path) -> RunSummary | None:
    try:
        record = read_sealed(folder / RECORD) if (folder / RECORD).is_file() else {}
    except CheckpointError:
        return None
    if record.get("kind") != "run":
        return None
    stages, records = tuple(record["stages"]), dict[str, Mapping[str, Any]]()
    for output in record.get("outputs", ()):
        with suppress(CheckpointError):
            made = read_provenance(folder / output) or {}
            records[str(made.get("stage"))] = made
    done = {*records} | ({"evaluate"} if (folder / "evaluation.json").is_file() else set())
    state = record["state"]
    if state == "running" and not is_locked(folder):
        state = "interrupted"
    left = [stage for stage in stages if stage not in done]
    place = _place(folder, left[0]) if left and state != "finished" else ""
    config = folder / CONFIG
    began = (config if config.is_file() else folder / RECORD).stat().st_mtime
    kept = tuple(stage for stage in stages if stage in done)
    return RunSummary(folder, stages, kept, state, place, began, numbers_of(folder, records))


def _place(folder: Path, stage: str) -> str:
    """How far a stage is, by the last row of its history."""
    rows: list[HistoryRow] = read_histories(folder).get(stage, [])
    if not rows:
        return f"before {stage}"
    total = (_config(folder).get(stage) or {}).get(_LIMITS.get(stage, ""))
    return f"{stage} {float(rows[-1]['step']):.0f}" + (f"/{total}" if total else "")


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_place(values: Sequence[str], folders: Sequence[Path]) -> bool:
    """Whether the values are paths in the runs' own folders."""
    return all(str(folder.absolute()) in value for value, folder in zip(values, folders, strict=False))


def _tags(history: Mapping[str, list[HistoryRow]]) -> Iterator[tuple[str, str, str]]:
    """Stage, tag and name of the curves of one run; those of PPO first, with what the judge said beside them."""
    for stage in sorted(history, key=lambda stage: stage != "ppo"):
        judged = sorted({tag for row in history[stage] for tag in row if tag.startswith("monitor/")})
        tags = _MAIN.get(stage, {"train/loss": f"{stage} loss"}) | {tag: tag.removeprefix("monitor/") for tag in judged}
        yield from ((stage, tag, name) for tag, name in tags.items() if series(history[stage], tag)[0])


def when(seconds: float) -> str:
    """A time of the day, as tables show it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
