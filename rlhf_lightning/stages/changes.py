"""What differs between the config of this run and that of the run before it in the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlhf_lightning.console.redaction import redact

_LENGTH = re.compile(r"(\w+)\.(?:data\.)?(max_epochs|rollouts): (\d+) -> (\d+)")


def first_config(*files: Path) -> dict[str, Any]:
    """The first of several files that is the config of a run; nothing where none is."""
    for file in files:
        with suppress(OSError, ValueError, YAMLError, OmegaConfBaseException):
            found = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
            if isinstance(found, dict) and isinstance(found.get("run_dir"), str):
                return {str(key): value for key, value in found.items()}
    return {}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as a record holds it: without passwords and tokens, in the types of JSON."""
    found: dict[str, Any] = json.loads(json.dumps(redact(dict(config)), default=str))
    return found


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two configs of a run, besides its folder; nothing where none was saved.

    Args:
        saved: the one before, with the ``run_dir`` that it had then.
        now: the one of today. Both are as `plain` returns them.
    """
    if not saved:
        return []
    moved = relocated(saved, saved["run_dir"], now["run_dir"])
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


def listed(changed: Sequence[str]) -> str:
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
