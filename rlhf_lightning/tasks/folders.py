"""A task's folder: made once, reused when it is whole, and never made where something else is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.folders import write_folder
from rlhf_lightning.checkpoint.places import foreign, lock
from rlhf_lightning.checkpoint.provenance import verify_folder
from rlhf_lightning.errors import CheckpointError

Metrics = dict[str, Any]


def prepare_folder(root: str | Path, stage: str, config: Mapping[str, Any], write: Callable[[Path], Metrics]) -> Path:
    """Make sure that ``root`` is a whole folder of ``stage`` with this ``config``, and return it as a path.

    A folder of the same stage with another ``config`` is replaced. Where several processes need the same folder, one
    makes it and the others wait.

    Args:
        root: where the folder is, or will be.
        stage: names the task in the provenance.
        config: plain data that decides the content.
        write: fills the folder that it is called with; returns metrics for the provenance.

    Raises:
        CheckpointError: a file of the folder is damaged, or something else is there; nothing is changed.
    """
    root, metrics = Path(root), dict[str, Any]()
    if Path.cwd().is_relative_to(root.resolve()):
        raise CheckpointError(f"{root}: is or holds the working folder; choose a folder of its own")
    if _is_prepared(root, stage, config):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with lock(root, wait=True):
        if _is_prepared(root, stage, config):
            return root
        record = {"stage": stage, "parents": {}, "config": dict(config), "metrics": metrics}
        # `metrics` is filled before the record is written
        return write_folder(root, lambda folder: metrics.update(write(folder)), record)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _is_prepared(root: Path, stage: str, config: Mapping[str, Any]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if reason := foreign(root, whole=False):
        raise CheckpointError(
            f"{root}: {reason}; it is no folder of {stage}. Choose another place; nothing was changed"
        )
    return bool(verify_folder(root, expect_stage=stage).get("config") == dict(config))
