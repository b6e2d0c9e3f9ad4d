"""What can be known to be wrong from a config alone, before torch is imported: keys, types, ranges, sizes that divide.

Nothing is listed twice: arguments and their types come from the signatures, ranges from the constructors
(`rlhf_lightning.rules.ranges`), types of a stage's own keys from their defaults in the config tree, and combinations
from `rlhf_lightning.rules.combinations`, which the parts call again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.config.bounds import check_numbers
from rlhf_lightning.config.locations import in_file
from rlhf_lightning.config.loggers import logger_nodes
from rlhf_lightning.config.messages import shown
from rlhf_lightning.config.other_tools import same_value
from rlhf_lightning.config.signatures import RESERVED, WORDS, Kind, is_number, signature
from rlhf_lightning.config.stage_checks import check_callbacks, check_stage, check_trainer, lora, world_size
from rlhf_lightning.config.tree import walk
from rlhf_lightning.errors import ConfigError, nearest
from rlhf_lightning.optim import kl_controllers
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.rules.stages import STAGES, names

# Numbers of a stage that no constructor takes, and the least they can be.
_LEAST = {
    "max_epochs": 1, "min_accuracy": 0, "samples_per_prompt": 1, "n": 2, "max_grad_norm": 0, "max_skipped_steps": 1
}  # fmt: skip
_REPEATED = ("max_grad_norm", "max_skipped_steps")  # by the part of a stage that takes them
_NULLABLE = ("checkpoint", "scheduler", "best_policy")  # parts that a run can do without
_PRODUCTS = ("highest", "high", "medium")  # of `torch.set_float32_matmul_precision`
_GROUPS = ("model", "data", "task", "trainer", "callbacks", "rollout", "scorer", "judge", "kl")


def check_config(config: Mapping[str, Any]) -> None:
    """Judge a resolved config, before anything is imported or read that takes time.

    Args:
        config: plain dicts and lists. Parts it does not have are not looked at.

    Raises:
        ConfigError: the first mistake found; names the key, what is allowed, and the nearest name.
    """
    stages = config.get("stages", [])
    check_numbers(config)
    if "stages" in config:
        _check_stages(stages)
    _check_lists(config)
    _check_resume(config.get("resume", "none"))
    _check_defaults(config, stages)
    for name in names(stages):
        _check_numbers_of(name, config.get(name) or {})
    for key, node in _nodes(config):
        _check_node(key, node)
    if (adapters := lora(config)) is not None:
        _check_node("model.lora", adapters)
    logger_nodes(config.get("logger"))
    trainer = config.get("trainer") or {}
    check_trainer(trainer, names(stages))
    check_callbacks(config.get("callbacks") or {}, names(stages))
    for name in names(stages):
        check_stage(config, name, world_size(trainer))


def _check_lists(config: Mapping[str, Any]) -> None:
    """No list of ours, or of Lightning, has a place for nothing; those of other parts may."""
    for entry in walk(config):
        known = not entry.target or entry.target.startswith(("rlhf_lightning.", "lightning."))
        if entry.value is None and isinstance(entry.holder, list) and known:
            raise ConfigError(f"{entry.key}: is null; leave it out of the list")


def _check_stages(stages: Any) -> None:
    if not isinstance(stages, list):
        raise ConfigError(f"stages={stages}: must be a list, for example stages=[{stages}]")
    if not stages:
        raise ConfigError(f"stages: none given; choose from {', '.join(STAGES)}")
    for stage in stages:
        if str(stage) not in STAGES and "." not in str(stage):
            raise ConfigError(
                f"stages: there is no stage {stage}.{nearest(str(stage), list(STAGES))}\nStages: {', '.join(STAGES)}, "
                "or the import path of your own"
            )
    if twice := next((name for name in names(stages) if names(stages).count(name) > 1), None):
        raise ConfigError(f"stages: {twice} stands there twice, but its section can name one output only; run it again")


# ------------------------------------------------------------------------------------------- keys without a `_target_`


def _check_defaults(config: Mapping[str, Any], stages: list[str]) -> None:
    """Values of keys that no signature speaks of have the type of their default."""
    _same_types("", config, in_file("base"))
    for stage in names(stages):
        _same_types("", config, {stage: in_file(f"stage/{stage}").get(stage, {})})
    for prefix, section in (("", config), *((f"{stage}.", config.get(stage) or {}) for stage in names(stages))):
        for name in ("run_dir", "policy", "reference", "output"):
            if isinstance(section, Mapping) and section.get(name) is not None:
                _check_value(f"{prefix}{name}", section[name], (Kind("str"),))
    if "ppo" in names(stages):
        parts, nodes = in_file("algorithm/ppo"), in_file("stage/ppo")["ppo"]  # signatures speak of the nodes' numbers
        _same_types("", config, {"ppo": {name: part for name, part in parts.items() if name not in nodes}})
    if group := next((key for key in _GROUPS if not isinstance(config.get(key) or {}, Mapping)), None):
        raise ConfigError(f"{group}={shown(group, config[group])}: must be a section, such as those in conf/{group}")
    _check_value("matmul_precision", config.get("matmul_precision", "high"), (Kind("choice", _PRODUCTS),))
    require("seed", config.get("seed", 0), at_least=0, at_most=2**32 - 1, why="what random number generators take")
    if (threads := config.get("threads")) is not None:
        _check_value("threads", threads, (Kind("int"), Kind("None")))
        require("threads", threads, at_least=1)


def _check_resume(resume: Any) -> None:
    if resume in ("none", "auto") or (isinstance(resume, str) and ("/" in resume or Path(resume).exists())):
        return
    choices = ["none", "auto"]
    hint = _meant(shown("resume", resume), choices)
    raise ConfigError(f"resume={shown('resume', resume)}: must be none, auto or the folder of a checkpoint.{hint}")


def _same_types(prefix: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for name, default in defaults.items():
        key = f"{prefix}{name}"
        if name not in values or (isinstance(default, str) and ("${" in default or default == "???")):
            continue
        value = values[name]
        if isinstance(default, dict) and "_target_" in default:
            _check_part(key, value, default["_target_"])
            continue
        if key == "ppo.critic":
            continue  # a name, a folder, or a part: see `_check_online`
        if isinstance(default, dict) and isinstance(value, dict):
            _same_types(f"{key}.", value, default)
        elif default is not None:
            _check_value(key, value, (Kind(type(default).__name__),))


def _check_part(key: str, value: Any, usual: str) -> None:
    """A part may be another one, or null where the run does without."""
    if (value is None and key.rpartition(".")[2] in _NULLABLE) or isinstance(value, Mapping):
        return
    raise ConfigError(f"{key}={shown(key, value)}: must be a part with a _target_, such as {usual}")


def _check_numbers_of(stage: str, section: Mapping[str, Any]) -> None:
    """Numbers of a stage's own keys: their ranges, and that a part which repeats one has the same."""
    for name, least in _LEAST.items():
        if is_number(section.get(name)):
            require(f"{stage}.{name}", section[name], at_least=least)
    nodes = list(_nodes({stage: section}))
    for name in (name for name in _REPEATED if name in section):
        taking = [(key, node) for key, node in nodes if name in node]
        for key, node in taking:
            if node[name] != section[name]:
                raise ConfigError(f"{key}.{name}={node[name]}: set {stage}.{name} instead, which stands there as well")
        if not taking and section[name] != in_file(f"stage/{stage}").get(stage, section).get(name, section[name]):
            raise ConfigError(f"{stage}.{name}={section[name]}: {section['module']['_target_']} takes no {name}")


# ---------------------------------------------------------------------------------------------- keys with a `_target_`


def _nodes(tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, node) of every node with a target, outer ones first."""
    for entry in walk(tree):
        if isinstance(entry.value, dict) and isinstance(entry.value.get("_target_"), str):
            yield entry.key, entry.value


def _check_node(key: str, node: Mapping[str, Any]) -> None:
    target = node["_target_"]
    takes = signature(target)
    if takes is None or "_args_" in node:
        return
    given = {name: value for name, value in node.items() if name not in RESERVED}
    for name, value in given.items():
        if name == "train" and value is None:
            continue  # see `rlhf_lightning.config.chain.check_complete`
        if name in takes.parameters:
            _check_value(f"{key}.{name}", value, takes.parameters[name].kinds())
        elif not takes.is_open:
            names = list(takes.parameters)
            raise ConfigError(
                f"{key}.{name}: {target} takes no {name}.{nearest(name, names)}\nIt takes: {', '.join(names)}"
            )
    for limit in takes.ranges:
        if is_number(given.get(limit.parameter)):
            require(f"{key}.{limit.parameter}", given[limit.parameter], **limit.bounds)
    if target.startswith("torch.optim.") and is_number(given.get("lr")):
        require(f"{key}.lr", given["lr"], above=0)
    if target.startswith(f"{kl_controllers.__name__}."):
        getattr(kl_controllers, target.rpartition(".")[2])(**given)  # needs no torch, and knows more


def _check_value(key: str, value: Any, kinds: tuple[Kind, ...] | None) -> None:
    if kinds is None or any(kind.fits(value) for kind in kinds):
        return
    choices = [str(choice) for kind in kinds for choice in kind.choices]
    words = [
        f"a list of {', '.join(kind.choices)}" if kind.name == "list" and kind.choices else WORDS[kind.name]
        for kind in kinds
        if kind.name in WORDS
    ]
    if "a number" in words and "a whole number" in words:
        words.remove("a whole number")
    single = [str(choice) for kind in kinds if kind.name == "choice" for choice in kind.choices]
    allowed = [f"one of {', '.join(dict.fromkeys(single))}"] if single else []
    raise ConfigError(
        f"{key}={shown(key, value)}: must be {' or '.join(dict.fromkeys(allowed + words))}."
        f"{_meant(str(value), choices)}"
    )


def _meant(value: str, choices: Sequence[str]) -> str:
    """The choice that another tool calls ``value``, or else the nearest."""
    return f" Did you mean {known}?" if (known := same_value(value, choices)) else nearest(value, choices)
