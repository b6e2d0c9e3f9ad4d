"""The loggers of a stage: each is given of the stage's name what it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from rlhf_lightning.callbacks.events import lasting
from rlhf_lightning.config.loggers import logger_nodes
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rules.partials import takes, unwrapped


def build_loggers(group: Any, stage: str, build: Callable[..., Any]) -> list[Logger] | Literal[False]:
    """The loggers of the config group ``logger``; False where there is none, as a Trainer takes it.

    Args:
        group: a node, or several under names.
        stage: its name. A logger that takes ``name`` or ``run_name`` is called so, unless the node names it.
        build: makes an object of a node.

    Raises:
        ConfigError: a logger's package is not installed, or it does not take what the node gives.
    """
    built = []
    for key, node in logger_nodes(group).items():
        factory = build({**node, "_partial_": True}, key)
        try:
            offered = _offered(unwrapped(factory)[0], stage)
            wanted = [name for name in offered if name in takes(factory) and node.get(name) is None]
            logger = lasting(factory(**{name: offered[name] for name in wanted}))
        except ImportError as error:
            raise ConfigError(f"{key}: {error}") from error
        except TypeError as error:
            raise ConfigError(f"{key}: {node['_target_']}: {error}") from error
        built += [logger] if logger else []
    return built or False


def _offered(target: Any, stage: str) -> dict[str, Any]:
    """What a logger may be given. TensorBoard's folder has no version: files of a resumed run stand beside the first.

    Others would replace their file there, or take the version for the id of the run.
    """
    offered: dict[str, Any] = {"name": stage, "run_name": stage}
    if isinstance(target, type) and issubclass(target, TensorBoardLogger):
        offered |= {"version": "", "default_hp_metric": False}
    return offered
