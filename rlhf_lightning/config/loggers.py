"""The group ``logger``: loggers under names; a single one may stand there without a name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from rlhf_lightning.errors import ConfigError

# By class: the module that a logger imports, and how it is installed.
_PACKAGES = {
    "WandbLogger": ("wandb", "'rlhf_lightning[wandb]'"),
    "MLFlowLogger": ("mlflow", "'rlhf_lightning[mlflow]'"),
    "TrackioLogger": ("trackio", "'rlhf_lightning[trackio]'"),
    "CometLogger": ("comet_ml", "comet-ml"),
    "NeptuneLogger": ("neptune", "neptune"),
}


def logger_nodes(group: Any) -> dict[str, Mapping[str, Any]]:
    """The nodes to be built, each by its key; those that are null are left out.

    Raises:
        ConfigError: something there is no logger, or one stands inside of another.

    >>> sorted(logger_nodes({"tb": {"_target_": "a.B"}, "csv": {"_target_": "a.C"}, "old": None}))
    ['logger.csv', 'logger.tb']
    >>> list(logger_nodes({"_target_": "a.B", "save_dir": "runs"}))
    ['logger']
    """
    if not group:
        return {}
    if not isinstance(group, Mapping):
        raise ConfigError(f"logger={group}: must be a logger or several under names; see `logger=many`")
    if "_target_" in group:
        inner = [key for key, value in group.items() if isinstance(value, Mapping) and "_target_" in value]
        if inner:
            raise ConfigError(
                f"logger.{inner[0]}: this is a logger inside of another one; to have several, each needs a name: begin "
                "with logger=many or logger=none"
            )
        return {"logger": group}
    for name, node in group.items():
        if node is not None and not (isinstance(node, Mapping) and "_target_" in node):
            raise ConfigError(f"logger.{name}: is no logger, since it has no _target_")
    return {f"logger.{name}": node for name, node in group.items() if node is not None}


def check_installed(group: Any) -> None:
    """Look for the packages of loggers without importing them.

    Raises:
        ConfigError: a logger's package is not installed; says how to install it.
    """
    for key, node in logger_nodes(group).items():
        module, package = _package(node)
        found = find_spec(module) if module else None
        if module and (
            found is None or found.origin is None
        ):  # none, or a folder of that name with what it has written
            raise ConfigError(f"{key}: {module} is not installed; pip install {package}")


def check_imports(group: Any) -> None:
    """Import the packages of loggers, before a run has begun that would end when it first logs.

    Raises:
        ConfigError: one is installed in part or does not fit to what else is installed; says how to install it again.
    """
    for key, node in logger_nodes(group).items():
        module, package = _package(node)
        if not module:
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever it does while it is imported
            why = (str(error).strip().splitlines() or [""])[0]
            raise ConfigError(
                f"{key}: {module} is installed, but cannot be imported ({type(error).__name__}: {why}); "
                f"pip install --force-reinstall {package}, or leave the logger out"
            ) from error


def _package(node: Mapping[str, Any]) -> tuple[str, str]:
    return _PACKAGES.get(str(node["_target_"]).rpartition(".")[2], ("", ""))
