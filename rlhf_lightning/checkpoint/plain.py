"""Hyperparameters as JSON can hold them: what a subclass recorded of its arguments, for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning.errors import CheckpointError

RECORDS = ("hyper_parameters", "datamodule_hyper_parameters")  # where Lightning puts `save_hyperparameters`
_CLASSES = ("hparams_type",)  # the class of a record, which a file without code cannot hold and nobody needs


def with_plain_records(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint whose recorded hyperparameters are dicts, lists, text and numbers.

    OmegaConf nodes are resolved, paths become text, NumPy numbers and arrays become numbers and lists. Everything else
    stays, and is refused with its place when it is written.

    Raises:
        CheckpointError: a node of OmegaConf cannot be resolved; the message says where.
    """
    kept = {key: value for key, value in checkpoint.items() if key not in _CLASSES}
    return kept | {name: _plain(kept[name], name) for name in RECORDS if name in kept}


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Container):
        try:
            return OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            raise CheckpointError(f"{where}: cannot be resolved ({error}); resolve it before it is recorded") from error
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}.{i}") for i, item in enumerate(value)]
    return value
