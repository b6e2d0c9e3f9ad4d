"""Hyperparameters as JSON can hold them: what a subclass recorded of its arguments, for people to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

RECORDS = ("hyper_parameters", "datamodule_hyper_parameters")  # where Lightning puts `save_hyperparameters`
_CLASSES = ("hparams_type",)  # the class of a record, which a file without code cannot hold and nobody needs


def with_plain_records(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint whose recorded hyperparameters are dicts, lists, text and numbers.

    Nodes of OmegaConf become dicts and lists, paths text, NumPy numbers and arrays numbers and lists. Everything else
    stays, and is refused with its place when it is written.
    """
    kept = {key: value for key, value in checkpoint.items() if key not in _CLASSES}
    return kept | {name: _plain(kept[name]) for name in RECORDS if name in kept}


def _plain(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(item) for item in value]
    return value
