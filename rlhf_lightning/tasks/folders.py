"""Reuse a prepared folder when it is whole; never replace one that something else wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.handover import read_provenance, verify_folder
from rlhf_lightning.errors import CheckpointError


def already_prepared(root: Path, stage: str, config: Mapping[str, Any]) -> bool:
    """True where ``root`` is a verified folder of ``stage`` with the same ``config``; False where nothing is there.

    A folder of the same stage with another ``config`` gives False too: it is ours, so it may be written again.

    Raises:
        CheckpointError: a file of the folder is damaged, or the folder was not written by ``stage``.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not root.is_dir() or read_provenance(root) is None:
        raise CheckpointError(
            f"{root}: exists and was not written by {stage}; choose an empty place, nothing was changed"
        )
    record = verify_folder(root, expect_stage=stage)
    return bool(record.get("config") == dict(config))
