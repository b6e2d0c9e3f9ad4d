"""What can be known to be wrong from a config alone, before torch is imported: keys, types, ranges, sizes that divide.

Nothing is listed twice: arguments and their types come from the signatures, ranges from the constructors
(`rlhf_lightning.rules.ranges`), types of a stage's own keys from their defaults in the config tree, and combinations
from `rlhf_lightning.rules.combinations`, which the parts call again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlhf_lightning.config.bounds import check_numbers
from rlhf_lightning.config.locations import in_file
from rlhf_lightning.config.loggers import logger_nodes
from rlhf_lightning.config.messages import shown
from rlhf_lightning.config.signatures import RESERVED, WORDS, Kind, Signature, is_number, signature
from rlhf_lightning.config.tree import walk
from rlhf_lightning.errors import ConfigError, nearest
from rlhf_lightning.optim import kl_controllers
from rlhf_lightning.rules import combinations
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.rules.stages import STAGES, names, stage_of

_TRANSLATED = {
    "gradient_clip_val": "max_grad_norm of the stage (for PPO ppo.max_grad_norm)",
    "accumulate_grad_batches": "micro_batch_size of the stage's data (for PPO ppo.settings.micro_batch_size)",
}
# Numbers of a stage that no constructor takes, and the least they can be.
_LEAST = {
    "max_epochs": 1, "min_accuracy": 0, "samples_per_prompt": 1, "n": 2, "max_grad_norm": 0, "max_skipped_steps": 1
}  # fmt: skip
_REPEATED = ("max_grad_norm", "max_skipped_steps")  # by the part of a stage that takes them
_NULLABLE = ("checkpoint", "scheduler", "best_policy")  # parts that a run can do without
_GROUPS = ("model", "data", "task", "trainer", "callbacks", "rollout", "scorer", "judge", "kl")
_REFERENCE_FREE = "rlhf_lightning.functional.reference_free."
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")  # of Lightning


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
    _check_defaults(config, stages)
    for name in names(stages):
        _check_numbers_of(name, config.get(name) or {})
    for key, node in _nodes(config):
        _check_node(key, node)
    if (lora := _lora(config)) is not None:
        _check_node("model.lora", lora)
    logger_nodes(config.get("logger"))
    trainer = config.get("trainer") or {}
    _check_trainer(trainer)
    for name in names(stages):
        _check_stage(config, name, _world_size(trainer))


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
    resume = config.get("resume", "none")
    if resume not in ("none", "auto") and "/" not in str(resume) and not Path(str(resume)).exists():
        hint = nearest(str(resume), ["none", "auto"])
        raise ConfigError(f"resume={resume}: must be none, auto or the folder of a checkpoint.{hint}")
    if (threads := config.get("threads")) is not None:
        _check_value("threads", threads, (Kind("int"), Kind("None")))
        require("threads", threads, at_least=1)


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
    words = [WORDS[kind.name] for kind in kinds if kind.name in WORDS]
    if "a number" in words and "a whole number" in words:
        words.remove("a whole number")
    allowed = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    raise ConfigError(
        f"{key}={shown(key, value)}: must be {' or '.join(dict.fromkeys(allowed + words))}."
        f"{nearest(str(value), choices)}"
    )


def _lora(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What stands under ``model.lora``, as a node."""
    given = (config.get("model") or {}).get("lora")
    return {"_target_": "rlhf_lightning.models.adapters.Lora", **given} if isinstance(given, Mapping) else None


def _completed(node: Mapping[str, Any]) -> SimpleNamespace | None:
    """The arguments of a node with the defaults of those it leaves out; None for parts that are not ours."""
    takes: Signature | None = signature(str(node.get("_target_")))
    if takes is None:
        return None
    return SimpleNamespace(**{name: p.default for name, p in takes.parameters.items()} | dict(node))


# ------------------------------------------------------------------------------------------------------- combinations


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    for key, instead in _TRANSLATED.items():
        if key in trainer:
            raise ConfigError(
                f"trainer.{key}: set {instead} instead, which keeps the loss exact for every split of the batch"
            )
    if str(trainer.get("strategy")).startswith("fsdp"):
        raise ConfigError(combinations.FSDP1_REFUSED)
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    if not (isinstance(devices, list) or re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)+", str(devices))):
        raise ConfigError(f"trainer.devices={devices}: must be a number above 0, a list of them, -1 (all), or auto")
    if isinstance(accelerator, str) and accelerator not in _ACCELERATORS:
        hint = nearest(accelerator, _ACCELERATORS)
        raise ConfigError(f"trainer.accelerator={accelerator}: must be one of {', '.join(_ACCELERATORS)}.{hint}")


def _world_size(trainer: Mapping[str, Any]) -> int:
    """Processes, as far as the config tells; 1 where the machine decides."""
    devices: Any = trainer.get("devices")
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    return max(count, 1) * int(trainer.get("num_nodes", 1))


def _check_stage(config: Mapping[str, Any], stage: str, world_size: int) -> None:
    section = config.get(stage) or {}
    data = _completed(section.get("data") or {})
    if data is not None:
        if hasattr(data, "micro_batch_size") and data.batch_size is not ...:
            by_length = bool(data.length_window)
            combinations.check_batch(data.batch_size, data.micro_batch_size, world_size, by_length, f"{stage}.data.")
        if hasattr(data, "max_prompt_length") and section.get("sampling"):
            _check_context(config, stage, data.max_prompt_length)
    shards = "ModelParallelStrategy" in str((config.get("trainer") or {}).get("strategy"))
    frozen = (config.get("model") or {}).get("freeze_below")
    record = STAGES.get(stage, stage_of(stage))
    if shards and record.reference and frozen:
        raise ConfigError(combinations.FSDP2_LAYOUT)
    lora = _lora(config)
    if lora is not None and shards and record.trains:
        raise ConfigError(combinations.FSDP2_ADAPTERS)
    if lora is not None and stage == "ppo":
        combinations.check_adapter_dropout(lora.get("lora_dropout", 0.0))
    if stage == "ppo":
        _check_online(section, world_size)
    loss = str((section.get("loss") or {}).get("_target_"))
    if stage == "dpo" and section.get("reference") and loss.startswith(_REFERENCE_FREE):
        raise ConfigError(
            f"dpo.reference={section['reference']}: {loss.rpartition('.')[2]} compares answers "
            "without a reference; set it to null"
        )


def _check_online(section: Mapping[str, Any], world_size: int) -> None:
    settings = _completed(section.get("settings") or {})
    sampling = _completed(section.get("sampling") or {})
    data, critic = _completed(section.get("data") or {}), section.get("critic")
    if sampling is not None:
        combinations.check_sampling(sampling.top_k, sampling.top_p, sampling.min_new_tokens)
    if settings is not None:
        advantage, loss = (section.get(part) or {} for part in ("advantage", "loss"))
        targets = str(advantage.get("_target_")), str(loss.get("_target_"))
        combinations.check_algorithm(settings, targets[0], advantage, targets[1], critic)
        if data is not None:
            combinations.check_schedule(settings, data.batch_size, world_size)
    names = ["policy", "shared_trunk"]
    if (isinstance(critic, dict) and "_target_" in critic) or "critic" not in section:
        return
    if not isinstance(critic, str) or not (critic in names or "/" in critic or Path(critic).exists()):
        raise ConfigError(combinations.WHICH_CRITIC.format(shown("ppo.critic", critic)) + nearest(str(critic), names))


def _check_context(config: Mapping[str, Any], stage: str, prompt_length: int) -> None:
    """The longest prompt and answer against the positions of the policy, or of the model it will be trained from."""
    section = config[stage]
    folders = [section.get("policy"), (config.get("model") or {}).get("path")]
    file = next((path for folder in folders if folder and (path := Path(folder) / "config.json").is_file()), None)
    try:
        model = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except ValueError:
        return  # loading the folder tells what is wrong with it
    positions = model.get("max_position_embeddings", model.get("n_positions")) if isinstance(model, dict) else None
    sampling = _completed(section["sampling"])
    if isinstance(positions, int) and sampling is not None:
        combinations.check_context(prompt_length, sampling.max_new_tokens, positions, f"{stage}.")
