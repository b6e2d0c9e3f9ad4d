"""What differs between the config of this run and that of the run before it in the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlhf_lightning.config.compose import config_text
from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.stages.places import CHECKPOINTS, CONFIG
from rlhf_lightning.stages.room import holds_a_run

_LENGTH = re.compile(r"(\w+)\.(?:data\.)?(max_epochs|rollouts): (\d+) -> (\d+)")


def saved_config(folder: Path) -> str:
    """The text of ``config.yaml`` of an earlier run: of the file, or of the copy in its newest checkpoint.

    Returns:
        nothing where no run has saved anything yet.

    Raises:
        CheckpointError: the file is damaged, and no checkpoint has a copy of it.
    """
    file = folder / CONFIG
    copies = sorted((folder / CHECKPOINTS).glob(f"*/step-*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    text = first_config(file, *reversed(copies))
    if not text and (file.exists() or holds_a_run(folder)):
        raise CheckpointError(
            f"{file}: {'damaged' if file.exists() else 'missing'}, and no checkpoint has a copy, so that nobody can "
            "tell whether the run would go on with the same config; restore the file or choose another run_dir"
        )
    return text


def first_config(*files: Path) -> str:
    """The first of several texts that is the config of a run."""
    for file in files:
        with suppress(OSError, ValueError, YAMLError, OmegaConfBaseException):
            text = file.read_text(encoding="utf-8")
            found = OmegaConf.to_container(OmegaConf.create(text))
            if isinstance(found, dict) and isinstance(found.get("run_dir"), str):
                return text
    return ""


def changes(text: str, config: Mapping[str, Any]) -> list[str]:
    """What differs from the config that an earlier run saved, besides its folder; nothing where it saved none."""
    if not text:
        return []
    saved = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(saved, dict)
    moved = relocated(saved, str(saved["run_dir"]), str(config["run_dir"]))
    now = OmegaConf.to_container(OmegaConf.create(config_text(config)))
    changed = {line.partition(": ")[0] for line in differences(saved, now)}  # `sft` may be a word as well as the folder
    return [line for line in differences(moved, now) if line.partition(": ")[0] in changed]


def part(line: str) -> str:
    """The first part of the key that a line of `differences` begins with."""
    return line.partition(".")[0].partition(":")[0]


def relocated(tree: Any, old: str, new: str) -> Any:
    """The same with all paths in the folder ``old`` in the folder ``new``."""
    if isinstance(tree, dict):
        return {key: relocated(value, old, new) for key, value in tree.items()}
    if isinstance(tree, list):
        return [relocated(value, old, new) for value in tree]
    if isinstance(tree, str) and tree.startswith(old.rstrip("/") + "/") and tree != old:
        return new.rstrip("/") + tree[len(old.rstrip("/")) :]
    return new if tree == old else tree


def listed(changed: list[str]) -> str:
    """The first of many lines."""
    return "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")


def differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """``key: old -> new`` of every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}, key=str):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif before != now:
        yield f"{key}: {json.dumps(before, default=str)} -> {json.dumps(now, default=str)}"


def longer(lines: Iterable[str]) -> dict[str, str]:
    """The stages that `differences` says are longer than before, and by how much, as ``3 -> 5 rollouts``.

    >>> longer(["sft.max_epochs: 1 -> 2", "ppo.rollouts: 60 -> 30", "ppo.data.rollouts: 60 -> 30"])
    {'sft': '1 -> 2 epochs'}
    """
    found = [match for line in lines if (match := _LENGTH.fullmatch(line))]
    return {m[1]: f"{m[3]} -> {m[4]} {m[2].removeprefix('max_')}" for m in found if int(m[3]) < int(m[4])}


def is_length(line: str) -> bool:
    """Whether a line of `differences` is about the length of a stage."""
    return bool(_LENGTH.fullmatch(line))
