"""What the commands beside training share: how they are asked, on what they compute, where rows go to."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning import signals
from rlhf_lightning.console.streams import append, say
from rlhf_lightning.errors import ConfigError, DiskError


def parser(command: str, what: str, example: str) -> argparse.ArgumentParser:
    """A parser with ``--help``; wrong words end the process with code 2.

    Args:
        command: its name.
        what: it does, in a sentence or two.
        example: one line that shows how it is typed.
    """
    return argparse.ArgumentParser(
        f"rlhf-lightning {command}",
        description=what,
        epilog=f"example: {example}",
        allow_abbrev=False,
    )


def add_machine(words: argparse.ArgumentParser) -> None:
    """The options that say where a model computes."""
    words.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto (the default) takes a GPU")
    words.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights")


def device_of(given: argparse.Namespace) -> Any:
    """The device that ``--device`` means.

    Raises:
        ConfigError: torch knows no such device, or it is not there.
    """
    import torch

    if given.device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=given.device).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {given.device}: {str(error).splitlines()[0]}") from error


def check_new(option: str, path: str | None) -> None:
    """Refuse to replace a file.

    Raises:
        ConfigError: it is there already, or the path is that of a folder or of a link to nowhere.
    """
    if path is None:
        return
    if path.endswith("/"):
        raise ConfigError(f"{option} {path}: is a folder; name a file in it")
    if os.path.lexists(path):
        what = "is there already" if os.path.exists(path) else f"is a link to {os.readlink(path)}, which is not there"
        raise ConfigError(f"{option} {path}: {what}; delete it or choose another name")


@contextmanager
def disk_error(path: str) -> Iterator[None]:
    """Around what writes the file of ``--out``: an error of the system as one of ours that names it.

    Raises:
        DiskError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(f"--out {path}: cannot write here ({error})") from error


@contextmanager
def rows_to(path: str | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Where rows go to as JSON lines, each as soon as it is given: a new file, or standard output.

    Raises:
        DiskError: it cannot be written, or is there; see `check_new`.
    """
    signals.begin()  # a signal waits until a row is whole
    if path is None:
        yield lambda row: say(json.dumps(row))
        return
    with disk_error(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch(exist_ok=False)

    def write(row: Mapping[str, Any]) -> None:
        with disk_error(path):
            append(path, json.dumps(row, ensure_ascii=False) + "\n")

    yield write
