"""What a sweep is about, and the table at its end: what each job chose, what came of it, and where it is."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning import errors
from rlhf_lightning.config.typed import choices
from rlhf_lightning.console.redaction import redact_text
from rlhf_lightning.errors import ConfigError, RLHFError, nearest

JOBS, TABLE = "sweep.jsonl", "sweep.csv"
_BASIC = "hydra._internal.core_plugins.basic_sweeper."


def check_objective(config: Mapping[str, Any], sweeper: str) -> None:
    """Judge what a job is to return, before it trains.

    Args:
        config: of the job.
        sweeper: the class that asked for it.

    Raises:
        ConfigError: the sweeper compares jobs, and nothing says by what.
    """
    asked = config.get("objective")
    if not (asked is None or isinstance(asked, str) or (isinstance(asked, list) and asked)):
        raise ConfigError(f"objective={asked}: must be the name of a metric, a list of names, or null")
    if asked is None and not sweeper.startswith(_BASIC):
        raise ConfigError(
            "objective: this sweeper compares jobs; add objective=METRIC, for example objective=evaluate/gold for the "
            "judge's score of the last policy, or a list of metrics"
        )


def objective_of(config: Mapping[str, Any], metrics: Mapping[str, float]) -> Any:
    """What a job of a sweep returns: the metric that ``objective`` names, a list for a list, all where it is null.

    Raises:
        ConfigError: the run has no such metric.

    >>> objective_of({"objective": "val/loss"}, {"val/loss": 0.5, "val/perplexity": 1.6})
    0.5
    """
    asked = config.get("objective")
    if asked is None:
        return metrics
    for name in asked if isinstance(asked, list) else [asked]:
        if name not in metrics:
            raise ConfigError(
                f"objective={name}: the run has no such metric.{nearest(str(name), list(metrics))}\nIt has: "
                f"{', '.join(sorted(metrics))}"
            )
    return [metrics[name] for name in asked] if isinstance(asked, list) else metrics[asked]


def keep(sweep: Path, job: int, overrides: Sequence[str], folder: str, outcome: Mapping[str, Any]) -> None:
    """Add a job to the records of a sweep, in one piece: jobs may run beside each other.

    Args:
        sweep: the folder of the sweep.
        job: its number.
        overrides: the command line of the job.
        folder: what it wrote.
        outcome: ``state``, and ``objective`` and ``metrics`` or an ``error``.
    """
    record = {"job": job, "chosen": choices(overrides), "folder": folder, **outcome}
    with open(sweep / JOBS, "a", encoding="utf-8") as stream:
        stream.write(redact_text(json.dumps(record, default=str)) + "\n")


def write_table(sweep: Path) -> str:
    """Write `TABLE` of the jobs that a sweep has kept; returns the same for the screen, without what all jobs share."""
    jobs = _jobs(sweep)
    if not jobs:
        return ""
    rows = list(map(_row, jobs))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (sweep / TABLE).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    chosen = list(dict.fromkeys(name for job in jobs for name in job["chosen"]))
    differ = [name for name in chosen if len({str(job["chosen"].get(name)) for job in jobs}) > 1]
    goals = [name for name in columns if re.fullmatch(r"objective( \d+)?", name)]
    shown = ["job", *differ, *goals, "state", "folder"]
    cells = [shown, *([_cell(row.get(name, "")) for name in shown] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*table, f"sweep  {sweep / TABLE}"])


def common_failure(sweep: Path | None) -> RLHFError | None:
    """The error of the first job of a sweep, if all have failed and it is one of ours; a sweeper may hide it."""
    jobs = _jobs(sweep) if sweep is not None else []
    if not jobs or any(job["state"] != "failed" for job in jobs):
        return None
    name, _, message = str(jobs[0]["error"]).partition(": ")
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, RLHFError)):
        return None
    return kind(f"no job has finished. The first: {message}")


def _jobs(sweep: Path) -> list[dict[str, Any]]:
    """The last record of each job, in their order."""
    file = sweep / JOBS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    jobs = {record["job"]: record for record in map(json.loads, lines)}
    return sorted(jobs.values(), key=lambda job: int(job["job"]))


def _row(job: Mapping[str, Any]) -> dict[str, Any]:
    goal = job.get("objective")
    goals = {f"objective {i}": value for i, value in enumerate(goal)} if isinstance(goal, list) else {"objective": goal}
    told = {name: value for name, value in goals.items() if isinstance(value, (int, float))}
    state = {"state": job["state"], "error": job.get("error", "")}
    return {"job": job["job"], **job["chosen"], **told, **state, "folder": job["folder"], **(job.get("metrics") or {})}


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
