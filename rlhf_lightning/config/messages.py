"""Complaints of Hydra and Lightning in a few lines, with the name that was probably meant and what else there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf

from rlhf_lightning.config.locations import CONF_DIR
from rlhf_lightning.config.other_tools import same_key
from rlhf_lightning.config.signatures import signature_anywhere
from rlhf_lightning.config.tree import at
from rlhf_lightning.console.redaction import redact, redact_text
from rlhf_lightning.errors import ConfigError, nearest
from rlhf_lightning.rules.stages import STAGES

_PLUGINS = {
    ("hydra/sweeper", "optuna"): "'rlhf_lightning[sweep]'",
    ("hydra/launcher", "joblib"): "'rlhf_lightning[sweep]'",
    ("hydra/launcher", "submitit_local"): "hydra-submitit-launcher",
    ("hydra/launcher", "submitit_slurm"): "hydra-submitit-launcher",
}  # what Hydra finds where their packages are installed
_MOST = 20  # names that are listed
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_NO_NAME = rf"(?i){_NUMBER}|true|false|null|\{{.*"  # what Hydra reads as another thing than text


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """What is wrong with the command line ``overrides`` that made Hydra raise ``error``, and the nearest valid name."""
    from rlhf_lightning.config.resolving import ours

    if (known := ours(error)) is not None:
        return str(known)
    text = redact_text(str(error).strip())
    typed = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    if "Config group override must be a string or a list" in text:
        group = next(name for name in typed if name in _groups() and re.fullmatch(_NO_NAME, typed[name]))
        return _unknown_option(group, typed[group], _options(group), overrides)
    if option := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        found = re.findall(r"(?m)^\t(\S+)$", text)  # those of folders added with --config-dir as well
        group, name = option.groups()
        outer = group.split("/")[0]
        if outer != group and typed.get(outer) == f"{group}/{name}".removeprefix(
            f"{outer}/"
        ):  # a path in the place of an option
            group, name, found = outer, typed[outer], []
        return _unknown_option(group, name, found or _options(group), overrides)
    if unused := re.search(r"Could not override '([^']+)'\. ?No match in the defaults list", text):
        return _unused_group(unused.group(1), overrides)
    if placed := re.search(r"Could not override '([^']+)'\.\s+Did you mean to override (?:one of )?(.+)\?", text):
        group, places = placed.groups()
        written = ", ".join(f"{place}=OPTION" for place in places.split(", "))
        return f"{group}: say for which part: {written}\nOptions of {group}: {listed(_options(group))}"
    if key := re.search(r"Could not override '([^']+)'", text):
        return _of_a_swapped_part(key.group(1), overrides) or _unknown_key(key.group(1), error)
    cause = f"\n{redact_text(str(error.__cause__))}" if error.__cause__ is not None else ""
    return text + cause


def of_a_list(overrides: Sequence[str]) -> str:
    """What is wrong where Hydra has made a TypeError of the options in a list; nothing if no group has one."""
    for override in overrides:
        group, _, value = override.lstrip("+").partition("=")
        if group in _groups() and value.startswith("["):
            return f"{override}: only names of options may stand in the list.\nOptions: {listed(_options(group))}"
    return ""


@contextmanager
def as_config_error(trainer: Mapping[str, Any]) -> Iterator[None]:
    """While a Trainer is built: what Lightning does not like about the config group ``trainer``, in our words.

    Raises:
        ConfigError: a device that is not there, a strategy that does not exist, arguments that do not go together.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        names = [name for name in ("accelerator", "devices", "strategy") if isinstance(trainer.get(name), (str, int))]
        asked = ", ".join(f"trainer.{name}={trainer[name]}" for name in names)
        raise ConfigError(f"{asked}: no Trainer can be made of this. {error}") from error


def shown(key: str, value: Any) -> str:
    """``value`` as it would be written on the command line, unless the key is one of a secret."""
    told = redact({key.rpartition(".")[2]: value}).popitem()[1]
    return json.dumps(told) if told is None or isinstance(told, bool) else str(told)


def listed(names: Sequence[str]) -> str:
    """The first names of many, and how many more there are."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def _unknown_option(group: str, option: str, options: Sequence[str], overrides: Sequence[str]) -> str:
    if (group, option) in _PLUGINS:
        return f"{group}={option}: is not installed; pip install {_PLUGINS[group, option]}"
    if group == "stage" and "." in option:
        return (
            f"stage={option}: a user-defined stage is one of a list: stages=[{option}] (docs/extending.md, section 4)"
        )
    known = [word for word in same_key(option, [], "") if word.startswith(f"{group}=")]
    instead = known[0] if known else _for_a_group(group, option, _stage(overrides))
    hint = f" Did you mean {instead}?" if instead else nearest(option.lower(), options)
    return f"{group}={option}: there is no such option.{hint}\nOptions of {group}: {listed(options)}"


def _for_a_group(group: str, value: str, stage: str) -> str:
    """What may be meant by a number, a switch or a path in the place of an option; nothing for any other word."""
    none = "none" in _options(group) and value.lower() in ("false", "null", "none", "0", "0.0", "off", "no")
    if none:
        return f"{group}=none"
    if re.fullmatch(_NUMBER, value):
        return {"kl": f"kl=fixed kl.coef={value}", "trainer": f"trainer.devices={value}"}.get(group, "")
    if group == "model":
        return f"model.path={value}"
    if not re.search(r"[./]", value):
        return ""
    if group in ("scorer", "judge"):
        return f"{group}=reward_model {group}.model.path={value}"
    rows = {"sft": "demonstrations", "reward": "comparisons", "dpo": "comparisons", "pipeline": "demonstrations"}
    return f"data.{rows.get(stage, 'prompts')}={value}" if group == "data" else ""


def _unused_group(key: str, overrides: Sequence[str]) -> str:
    group = key.split("@")[0]
    if not (CONF_DIR / group).is_dir():
        return f"{key}: there is no such group.{nearest(group, _groups())}\nGroups: {listed(_groups())}"
    stages = [stage for stage in _options("stage") if re.search(rf"/{group}\b", _text(f"stage/{stage}"))]
    stage = _stage(overrides)
    experiment = next((o for o in overrides if o.startswith("experiment=")), "")
    if experiment and not any(o.startswith(key) for o in overrides):
        return (
            f"{experiment} chooses {key}, which stage={stage} has not. To run this stage of it, write stages=[{stage}] "
            f"instead of stage={stage}"
        )
    used = f"It is used by stage={', '.join(stages)}. " if stages else ""
    return f"{key}: stage={stage} has no part {group}.\n{used}To have it all the same, write +{key}=OPTION"


def _stage(overrides: Sequence[str]) -> str:
    return next((o.partition("=")[2] for o in overrides if o.startswith("stage=")), "pipeline")


def _of_a_swapped_part(key: str, overrides: Sequence[str]) -> str:
    """What the part that the command puts into a slot takes of its own; nothing if it puts none there."""
    slot, _, last = key.rpartition(".")
    typed = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    target = typed.get(f"{slot}._target_", "").strip("'\"")
    takes = signature_anywhere(target) if target else None
    if takes is None:
        return ""
    if last in takes.parameters:
        return (
            f"{key}: there is no such key in the config, but {target} takes it: write +{key}={typed.get(key, 'VALUE')}"
        )
    own = listed([f"+{slot}.{name}=" for name in takes.parameters])
    return f"{key}: {target} takes no {last}.{nearest(last, list(takes.parameters))}\nIt takes: {own}"


def _unknown_key(key: str, error: Exception) -> str:
    from rlhf_lightning.private_api.hydra import config_at_failure

    tree = config_at_failure(error)
    keys = list(_keys(tree))
    *outer, last = key.split(".")
    longer = [k for k in keys if k.endswith("." + key)] or [
        k for k in keys if outer and k.startswith(f"{outer[0]}.") and k.endswith(f".{last}")
    ]
    longer = longer or same_key(last, keys, outer[0] if outer else "")
    elsewhere = set(STAGES) - set(tree.get("stages") or STAGES)
    longer = [key for key in longer if key.split(".")[0] not in elsewhere] or longer
    hint = f" Did you mean {' or '.join(longer[:3])}?" if longer else nearest(key, [*keys, *_groups()])
    depth = next((n for n in range(len(outer), 0, -1) if ".".join(outer[:n]) in keys), 0)
    parent = ".".join(outer[:depth])
    if outer and not at(OmegaConf.to_container(tree), tuple(outer)):  # null, of which Hydra has made an empty section
        return f"{key}: {parent} is null, so nothing is in it. Write {parent}={{{last}: VALUE}}"
    there = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    there = [name for name in there if not name.startswith("_")]
    lines = [f"{key}: there is no such key.{hint}"]
    if there:
        lines.append(f"{f'Keys of {parent}' if parent else 'Keys'}: {listed(there)}")
    if outer and (options := [o for o in _options(outer[0]) if re.search(rf"(?m)^{last}:", _text(f"{outer[0]}/{o}"))]):
        lines.append(f"Options that have it: {', '.join(f'{outer[0]}={option}' for option in options)}")
    return "\n".join([*lines, f"To add a new key on purpose, write +{key}=VALUE"])


def _groups() -> list[str]:
    folders = (p.relative_to(CONF_DIR) for p in CONF_DIR.rglob("*") if p.is_dir())
    return sorted(str(p) for p in folders if p.parts[0] != "hydra")


def _options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF_DIR / group).glob("*.yaml"))


def _text(name: str) -> str:
    return (CONF_DIR / f"{name}.yaml").read_text(encoding="utf-8")


def _keys(tree: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a DictConfig, interpolations and missing values as they stand."""
    from rlhf_lightning.private_api.omegaconf import raw_items

    for name, value in raw_items(tree):
        if not (prefix == "" and name == "hydra"):
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")
