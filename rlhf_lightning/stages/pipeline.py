"""Run the stages that a config names, one after the other, in one process."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning import signals
from rlhf_lightning.config.allowlist import check_names, check_objects
from rlhf_lightning.config.chain import check_present
from rlhf_lightning.config.judging import judged
from rlhf_lightning.config.loggers import check_imports
from rlhf_lightning.config.screen import closing
from rlhf_lightning.console.streams import say
from rlhf_lightning.errors import RLHFError
from rlhf_lightning.rules.stages import STAGES, before, product, stage_of
from rlhf_lightning.rules.started import check_started
from rlhf_lightning.stages.device import settled
from rlhf_lightning.stages.estimate import warn_of_size
from rlhf_lightning.stages.parts import check_parts, load_stage
from rlhf_lightning.stages.places import check_reads, outputs
from rlhf_lightning.stages.ranks import join, stop_if_asked
from rlhf_lightning.stages.run import Run

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any]) -> dict[str, float]:
    """Prepare the task and run every stage of ``config["stages"]``.

    Stages hand over verified folders, so any part of the pipeline can run alone on folders that are there already.

    Args:
        config: resolved config, for example ``compose(["stage=ppo"])``; one that was made or changed by hand is judged
            here.

    Returns:
        the last metrics of all stages.

    Raises:
        ConfigError: an unknown stage, a config that a stage cannot work with, or ranks with different ones.
        signals.Stopped: inside of `signals.watched`, a signal has come; says what was saved and how to go on.
    """
    check_present("", config, ("stages",))
    began = time.monotonic()
    config = settled(judged(config))
    check_started(config["trainer"])
    if config["threads"]:
        torch.set_num_threads(int(config["threads"]))
    this = Run(config)
    with this.files.lock() if this.is_first else nullcontext():
        try:
            join(this.predictor(), config)
            if this.is_first and config["trainer"].get("accelerator") != "cpu":
                log.info(f"trainer.precision={config['trainer'].get('precision')}")  # the device may have decided
            metrics = _run_stages(this)
            if this.is_first:
                say(closing(config, metrics, time.monotonic() - began))
            return metrics
        except SystemExit as stop:  # `signals.Stopped`, or what a user-defined Trainer makes of SIGTERM
            if not signals.received():
                raise
            notes = [getattr(stop, "note", ""), this.files.resume_hint()]
            raise signals.Stopped(signals.received(), "; ".join(filter(None, notes))) from stop


def _run_stages(run: Run) -> dict[str, float]:
    stages = run.config["stages"]
    check_imports(run.config.get("logger"))
    for stage in stages:
        check_parts(run, stage)
    _check_objects(run)
    if run.is_first and (note := run.sampling_note()):
        say(note)
    run.prepare()
    check_reads(run.config)
    metrics: dict[str, float] = {}
    for entry in stages:
        stop_if_asked()
        stage = load_stage(run, entry)
        done = run.files.finished(stage.name, next(reversed(outputs(run.section(stage.name))), None))
        assert callable(stage.run)
        if done is None and not stage.trains:
            run.files.begin(stage.name)
        if done is None:
            with _makers_named(run.config, stage.name), _loggers_closed(run):
                if run.is_first:
                    warn_of_size(run.config, stage.name)
                found = stage.run(run) or {}
                run.loggers.end(stage.name, found, _figures(run, stage.name))
                metrics |= found
        else:
            metrics |= done
    return metrics


@contextmanager
def _loggers_closed(run: Run) -> Iterator[None]:
    """While a stage runs: loggers are told if it fails."""
    try:
        yield
    except BaseException:
        run.loggers.close(failed=True)
        raise


def _figures(run: Run, stage: str) -> list[Path]:
    """Those of the report, once the stage that writes it is done."""
    return sorted((run.folder / "figures").glob("*.png")) if stage == "evaluate" else []


@contextmanager
def _makers_named(config: Mapping[str, Any], reader: str) -> Iterator[None]:
    """While a stage runs: an error about what a user-defined stage was to make says how that stage makes nothing."""
    try:
        yield
    except RLHFError as error:
        for entry in before(reader, config["stages"]):
            kind = config[stage_of(entry).name].get("makes", "policy")
            if entry not in STAGES and (folder := product(entry, kind, config)) and folder in str(error):
                name = stage_of(entry).name
                error.args = (f"{error}\nIf {name} makes no {kind}, set {name}.makes: nothing", *error.args[1:])
        raise


def _check_objects(run: Run) -> None:
    """Import what the stages will build, so that a name that is not there is known before the first of them runs."""
    stages = [stage_of(entry) for entry in run.config["stages"]]
    asked = {group for stage in stages for group in stage.asks}
    for key in (*sorted(asked), *(stage.name for stage in stages)):
        part, trusted = {key: run.config.get(key)}, run.config["trusted_targets"]
        check_names(part, trusted)
        check_objects(part, trusted)
