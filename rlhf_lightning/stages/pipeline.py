"""Run the stages that a config names, one after the other, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch

from rlhf_lightning import signals
from rlhf_lightning.config.allowlist import check_names, check_objects
from rlhf_lightning.config.checks import check_complete, check_config
from rlhf_lightning.config.compose import save_config
from rlhf_lightning.stages import (
    Run,
    run_best_of_n,
    run_dpo,
    run_evaluate,
    run_kto,
    run_ppo,
    run_rank,
    run_reward,
    run_sft,
)
from rlhf_lightning.stages.parts import check_parts
from rlhf_lightning.stages.places import outputs
from rlhf_lightning.stages.ranks import join, stop_if_asked

STAGES: dict[str, Callable[[Run], dict[str, float]]] = {
    "sft": run_sft,
    "rank": run_rank,
    "reward": run_reward,
    "ppo": run_ppo,
    "dpo": run_dpo,
    "kto": run_kto,
    "best_of_n": run_best_of_n,
    "evaluate": run_evaluate,
}
SCORED = {"rank", "ppo", "best_of_n", "evaluate"}  # stages that ask the judge or the scorer


def run(config: Mapping[str, Any]) -> dict[str, float]:
    """Prepare the task and run every stage of ``config["stages"]``.

    Stages hand over verified folders, so any part of the pipeline can run alone on folders that are there already.

    Args:
        config: resolved config, for example ``compose(["stage=ppo"])``.

    Returns:
        the last metrics of all stages.

    Raises:
        ConfigError: an unknown stage, a config that a stage cannot work with, or ranks with different ones.
        signals.Stopped: inside of `signals.watched`, a signal has come; says what was saved and how to go on.
    """
    check_config(config)
    check_complete(config)
    if config["threads"]:
        torch.set_num_threads(int(config["threads"]))
    this = Run(config)
    with this.files.claimed() if this.is_first else nullcontext():
        try:
            join(this.predictor(), config)
            return _run_stages(this)
        except SystemExit as stop:  # `signals.Stopped`, or what a user-defined Trainer makes of SIGTERM
            if not signals.received():
                raise
            notes = [getattr(stop, "note", ""), this.files.resume_hint()]
            raise signals.Stopped(signals.received(), "; ".join(filter(None, notes))) from stop


def _run_stages(run: Run) -> dict[str, float]:
    stages = run.config["stages"]
    if run.is_first:
        save_config(dict(run.config), run.folder)
    for stage in stages:
        check_parts(run, stage)
    _check_objects(run)
    run.prepare()
    metrics: dict[str, float] = {}
    for stage in stages:
        stop_if_asked()
        done = run.files.finished(stage, next(reversed(outputs(run.section(stage))), None))
        metrics |= STAGES[stage](run) if done is None else done
    return metrics


def _check_objects(run: Run) -> None:
    """Import what the stages will build, so that a name that is not there is known before the first of them runs."""
    stages = run.config["stages"]
    judged = ("judge", "scorer") if SCORED & set(stages) else ()
    for key in (*judged, *stages):
        part, trusted = {key: run.config.get(key)}, run.config["trusted_targets"]
        check_names(part, trusted)
        check_objects(part, trusted)
