"""Rows that take long to make: a command that was interrupted goes on when it is typed again."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lightning import signals
from rlhf_lightning.checkpoint.places import lock, write_file
from rlhf_lightning.checkpoint.provenance import read_json
from rlhf_lightning.cli.arguments import check_new, disk_error, rows_to
from rlhf_lightning.console.streams import append, say
from rlhf_lightning.errors import CheckpointError, ConfigError

PART = ".part"  # which is no file of rows for those that read a folder


class Rows(NamedTuple):
    """Rows that an interrupted command has left, and what writes the next ones."""

    kept: list[dict[str, Any]]
    write: Callable[[Mapping[str, Any]], None]


@contextmanager
def resumed_rows(given: argparse.Namespace, read: Sequence[str], device: Any, unit: int) -> Iterator[Rows]:
    """Where rows go to, each as soon as it is given: a new file, or standard output.

    They stand in ``PATH.part`` until the last one is there, beside a record of what they are made with. So the file
    itself is whole or not there, and the rows of a command that was interrupted are kept for the same command.

    Args:
        given: what was typed, on which rows depend. ``out`` is the new file; None is standard output, where nothing is
            kept.
        read: names in it of files and folders, which are known by what they hold.
        device: on which it computes.
        unit: rows that are made at once and depend on each other; of a part of them none is kept.

    Raises:
        ConfigError: the file is there, or rows were left that are made with something else or that are not ours.
        CheckpointError: another process writes the file, or what was left is damaged.
        DiskError: it cannot be written.
    """
    path = given.out
    if path is None:
        with rows_to(None) as write:
            yield Rows([], write)
        return
    signals.begin()  # a signal waits until a row is whole
    part, record = Path(f"{path}{PART}"), Path(f"{path}.settings{PART}")
    count = 0

    def write_row(row: Mapping[str, Any]) -> None:
        nonlocal count
        with disk_error(path):
            append(part, json.dumps(row, ensure_ascii=False) + "\n")
        count += 1

    with disk_error(path):
        part.parent.mkdir(parents=True, exist_ok=True)
    with lock(Path(path)):
        check_new("--out", path)
        kept = _left(path, part, record, _settings(given, read, device), unit)
        count = len(kept)
        try:
            yield Rows(kept, write_row)
        except BaseException:
            if count:
                say(f"{part}: {count} rows are kept; the same command goes on behind them", sys.stderr)
            else:
                part.unlink(missing_ok=True)
                record.unlink(missing_ok=True)
            raise
        with disk_error(path):
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(part, path)
            record.unlink(missing_ok=True)


def _settings(given: argparse.Namespace, read: Sequence[str], device: Any) -> dict[str, Any]:
    """What rows depend on."""
    from rlhf_lightning.stages.parents import Parents  # takes seconds

    found = Parents({name: getattr(given, name) for name in read}).record()
    options = {name: value for name, value in vars(given).items() if name != "out"}
    return {**options, **{name: _content(found[name]) for name in read}, "device": device.type}


def _left(path: str, part: Path, record: Path, made: Mapping[str, Any], unit: int) -> list[dict[str, Any]]:
    """The rows of whole units that an interrupted command has left; what follows them is cut off."""
    before = read_json(record)
    for file in (part, record):
        ours = before.keys() == made.keys() and file.is_file() and not file.is_symlink()
        if os.path.lexists(file) and not ours:
            raise ConfigError(
                f"--out {path}: {file} is there, which this command has not left, or not with a record of its words "
                f"({record}); delete it, or choose another name"
            )
    if not part.exists():
        write_file(record, json.dumps(made, indent=2) + "\n")
        return []
    others = [_difference(name, before.get(name), now) for name, now in made.items() if before.get(name) != now]
    if others:
        raise ConfigError(
            f"--out {path}: {part} holds rows of a command that was interrupted, with {', '.join(others)}. Give the "
            f"same as then, delete {part}, or choose another name"
        )
    with disk_error(path):
        lines = part.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        del lines[len(lines) // unit * unit :]
        try:
            kept = list(map(json.loads, lines))
        except ValueError as error:
            raise CheckpointError(f"{part}: is damaged ({error}); delete it to begin again") from error
        os.truncate(part, sum(map(len, lines)))
    if kept:
        say(f"{part}: goes on behind {len(kept)} rows that are there", sys.stderr)
    return kept


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(now, (dict, list)):
        return f"another {name.upper()}"
    shown = ["nothing" if value is None else str(value) for value in (then, now)]
    return f"--{name.replace('_', '-')} {shown[0]} (now {shown[1]})"


def _content(identity: Any) -> Any:
    """What a file or folder holds, wherever it lies; a name on the hub is all that is known of it."""
    if isinstance(identity, list):
        return list(map(_content, identity))
    found = {name: identity[name] for name in ("sha256", "files") if identity.get(name)}
    return found or {"path": identity["path"]}
