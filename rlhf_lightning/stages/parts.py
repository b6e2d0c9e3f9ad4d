"""The parts that a config can swap are tried before any stage of a run begins, without a model."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from typing import Any

from rlhf_lightning.config.allowlist import check_objects, resolve
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.optim.schedules import check_schedule
from rlhf_lightning.rules.stages import STAGES, Stage, stage_of
from rlhf_lightning.stages.run import Run


def load_stage(run: Run, entry: str) -> Stage:
    """The record of an entry of ``stages``, imported.

    Raises:
        ConfigError: there is nothing at an import path, it may not be named, or it is neither a `Stage` nor callable.
    """
    if entry not in STAGES:
        check_objects({"stages": [entry]}, run.config["trusted_targets"])
    stage = stage_of(entry)
    found: Any = _imported(stage.run)
    stage = replace(found, name=stage.name) if isinstance(found, Stage) else replace(stage, run=found)
    stage = replace(stage, run=_imported(stage.run), check=_imported(stage.check))
    if not callable(stage.run):
        raise ConfigError(f"stages: {entry} is a {type(stage.run).__name__}; name a function of the run, or a Stage")
    try:
        signature(stage.run).bind(run)
    except TypeError as error:
        raise ConfigError(f"stages: {entry} is called with the run and nothing else: {error}") from error
    except ValueError:
        pass  # some that are written in C
    return stage


def check_parts(run: Run, entry: str) -> None:
    """Build optimizer, schedule and formulas of a stage and call each on a few numbers.

    Raises:
        ConfigError: names the key, how the part was called, and what went wrong.
    """
    stage = load_stage(run, entry)
    section: Any = run.section(stage.name)
    if "optimizer" in section:
        optimizer, scheduler = (run.build(section.get(part)) for part in ("optimizer", "scheduler"))
        check_schedule(scheduler, optimizer, f"{stage.name}.scheduler")
    if callable(stage.check):
        stage.check(run)


def _imported(found: Any) -> Any:
    return resolve("stages", found) if isinstance(found, str) else found
