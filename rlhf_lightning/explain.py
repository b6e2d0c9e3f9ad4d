"""Hydra's complaints in one or two lines, with the name that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_lightning.locations import CONF_DIR


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """What is wrong with the command line ``overrides`` that made Hydra raise ``error``, and the nearest valid name."""
    text = str(error).strip()
    if option := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        return _unknown_option(*option.groups())
    if group := re.search(r"Could not override '([^']+)'\. ?No match in the defaults list", text):
        return _unknown_group(group.group(1))
    if key := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(key.group(1), overrides)
    cause = f"\n{error.__cause__}" if error.__cause__ is not None else ""
    return text + cause


def _unknown_option(group: str, option: str) -> str:
    options = sorted(p.stem for p in (CONF_DIR / group).glob("*.yaml"))
    hint = _nearest(option, options)
    return f"{group}={option}: there is no such option.{hint}\nOptions of {group}: {', '.join(options) or 'none'}"


def _unknown_group(key: str) -> str:
    groups = _groups()
    hint = _nearest(key.split("@")[0], [*groups, *_keys(_compose([]))])
    return f"{key}: no part of this config has that name.{hint}\nGroups: {', '.join(groups)}"


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    keys = list(_keys(_compose([o for o in overrides if _is_choice(o)])))
    longer = [k for k in keys if k.endswith("." + key)]
    hint = f" Did you mean {' or '.join(longer[:3])}?" if longer else _nearest(key, [*keys, *_groups()])
    return f"{key}: there is no such key.{hint}\nTo add a new key on purpose, write +{key}=VALUE"


def _groups() -> list[str]:
    folders = (p.relative_to(CONF_DIR) for p in CONF_DIR.rglob("*") if p.is_dir())
    return sorted(str(p) for p in folders if p.parts[0] != "hydra")


def _is_choice(override: str) -> bool:
    name = override.partition("=")[0].lstrip("+~").split("@")[0]
    return (CONF_DIR / name).is_dir()


def _compose(overrides: Sequence[str]) -> Any:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), version_base=None):
            return OmegaConf.to_container(hydra.compose("train", list(overrides)), resolve=False)
    except HydraException:
        return {}


def _keys(tree: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")


def _nearest(name: str, candidates: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, candidates, n=1)
    return f" Did you mean {near[0]}?" if near else ""
