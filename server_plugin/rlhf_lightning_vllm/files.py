"""Weights from safetensors files that are what they were said to be. No vLLM here."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

BLOCK = 1 << 22  # bytes


def weights(files: Sequence[Mapping[str, str]], until: float) -> Iterator[tuple[str, Any]]:
    """Names and tensors of all files, once every hash is known to be right.

    Args:
        files: ``path`` and ``sha256`` of each.
        until: time on `time.monotonic` after which nothing more is read.

    Raises:
        ValueError: no file, another content than was said, or a name twice.
        TimeoutError: it takes too long.
        OSError: a file cannot be read.
    """
    if not files:
        raise ValueError("an update without files")
    for file in files:
        if (found := _hash(Path(file["path"]), until)) != file["sha256"]:
            raise ValueError(f"{file['path']}: its SHA-256 is {found} and not {file['sha256']}")
    seen: set[str] = set()
    for file in files:
        with safe_open(file["path"], framework="pt") as content:
            for name in list(content.keys()):
                if name in seen:
                    raise ValueError(f"{file['path']}: the weight {name} is there twice")
                seen.add(name)
                _look(until)
                yield name, content.get_tensor(name)


def _hash(path: Path, until: float) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            _look(until)
    return digest.hexdigest()


def _look(until: float) -> None:
    if time.monotonic() > until:
        raise TimeoutError("the weights were not read in time")
