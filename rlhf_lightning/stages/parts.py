"""The parts that a config can swap are tried before any stage of a run begins, without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.formulas import check_answer_loss, check_pair_loss, check_ranking_loss
from rlhf_lightning.modules.ppo_rules import check_combination
from rlhf_lightning.optim.schedules import check_schedule
from rlhf_lightning.rules.partials import called
from rlhf_lightning.stages.run import Run


def check_parts(run: Run, stage: str) -> None:
    """Build optimizer, schedule and formulas of a stage and call each on a few numbers.

    Raises:
        ConfigError: names the key, how the part was called, and what went wrong.
    """
    section, key = run.section(stage), stage
    if stage == "best_of_n":
        section, key = section["sft"], "best_of_n.sft"
    if "optimizer" in section:
        check_schedule(run.build(section["scheduler"]), run.build(section["optimizer"]), f"{key}.scheduler")
    if stage in _FORMULAS:
        _FORMULAS[stage](run, section)


def _ppo(run: Run, section: Mapping[str, Any]) -> None:
    settings, sampling = run.build(section["settings"]), run.build(section["sampling"])
    advantage, policy_loss = run.build(section["advantage"]), run.build(section["policy_loss"])
    check_combination(settings, sampling, advantage, policy_loss, section["critic"])


def _reward(run: Run, section: Mapping[str, Any]) -> None:
    if "ranking_loss" in section["module"]:  # a module of the user may do without
        check_ranking_loss(run.build(section["module"]["ranking_loss"]))


def _dpo(run: Run, section: Mapping[str, Any]) -> None:
    loss = run.build(run.config["loss"])
    if not check_pair_loss(loss) and section["reference"]:
        raise ConfigError(
            f"dpo.reference is set, but {called(loss)} compares answers without a reference; set it to null"
        )


def _kto(run: Run, section: Mapping[str, Any]) -> None:
    check_answer_loss(run.build(section["loss"]))


_FORMULAS: dict[str, Callable[[Run, Mapping[str, Any]], None]] = {
    "ppo": _ppo,
    "reward": _reward,
    "dpo": _dpo,
    "kto": _kto,
}
