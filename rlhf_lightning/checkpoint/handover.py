"""Hand-over folders between stages: written whole or not at all, and verified before they are read.

A folder holds the files of its stage (a Hugging Face model, or ``rankings.jsonl``) plus ``provenance.json``, which
names the stage, its parents, its configuration and metrics, the versions used, and the SHA-256 and size of every
other file. No torch import here: a command line that only checks folders starts at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import CheckpointError

PROVENANCE = "provenance.json"
SCHEMA = 1
_TMP = ".tmp-"
_PACKAGES = ("rlhf-lightning", "torch", "lightning", "transformers", "hydra-core")


def write_folder(path: str | Path, write: Callable[[Path], None], provenance: Mapping[str, Any]) -> Path:
    """Let ``write`` fill a temporary sibling of ``path``, seal it with ``provenance.json`` and rename it into place.

    A crash at any moment leaves the previous folder as it was. Files and folder are flushed to disk before the rename.

    Args:
        path: where the finished folder will be; an older one there is replaced.
        write: called with the temporary folder.
        provenance: plain data: ``stage``, ``parents``, ``config``, ``metrics``; file checksums and versions are added.

    Raises:
        CheckpointError: the place cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        tmp = Path(tempfile.mkdtemp(prefix=f"{_TMP}{path.name}-", dir=path.parent))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write here ({error}); choose another run_dir or free the disk"
        ) from error
    try:
        write(tmp)
        record = {"schema": SCHEMA, **provenance, "versions": _versions(), "files": _digests(tmp)}
        (tmp / PROVENANCE).write_text(
            json.dumps(record, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8"
        )
        _flush(tmp)
        tmp.chmod(0o755)
        _swap(tmp, path)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    return path


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """The provenance of a folder, or None for one that another tool wrote.

    Raises:
        CheckpointError: the file is there but is not the JSON object this library writes.
    """
    file = Path(path) / PROVENANCE
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: not readable as JSON ({error}); the folder is damaged, write it again"
        ) from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{file}: schema {record.get('schema') if isinstance(record, dict) else record!r}, expected {SCHEMA}"
        )
    return record


def verify_folder(path: str | Path, expect_stage: str | None = None) -> dict[str, Any]:
    """Check every file of a hand-over folder against its checksum and return the provenance.

    Args:
        path: a folder written by `write_folder`.
        expect_stage: refuse a folder that another stage wrote.

    Raises:
        CheckpointError: folder or provenance missing, a file missing, of another size or with another checksum, or the
            wrong stage. The message names the file and the reason.
    """
    path = Path(path)
    record = read_provenance(path)
    if record is None:
        raise CheckpointError(f"{path}: no {PROVENANCE}; it was not written by a finished stage of this library")
    if expect_stage is not None and record.get("stage") != expect_stage:
        raise CheckpointError(f"{path}: written by stage {record.get('stage')!r}, expected {expect_stage!r}")
    for name, want in record["files"].items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"{file}: leads out of its folder, though {PROVENANCE} lists it; do not use it")
        if not file.is_file():
            raise CheckpointError(f"{file}: missing, though {PROVENANCE} lists it; run the stage again")
        if file.stat().st_size != want["bytes"]:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes, expected {want['bytes']}; run the stage again")
        if sha256(file) != want["sha256"]:
            raise CheckpointError(f"{file}: checksum differs from {PROVENANCE}; the file was changed or is damaged")
    return record


def sha256(file: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digests(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != PROVENANCE)
    return {p.relative_to(folder).as_posix(): {"sha256": sha256(p), "bytes": p.stat().st_size} for p in files}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _flush(folder: Path) -> None:
    for entry in [*folder.rglob("*"), folder]:
        handle = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap(tmp: Path, path: Path) -> None:
    """Rename ``tmp`` to ``path``; an older folder steps aside first and is removed last."""
    old = path.with_name(f"{_TMP}{path.name}-old") if path.exists() else None
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
    os.rename(tmp, path)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what an earlier crash left behind; bring an old folder back if the crash fell between two renames."""
    old = path.with_name(f"{_TMP}{path.name}-old")
    if old.is_dir() and not path.exists():
        os.rename(old, path)
    for stale in path.parent.glob(f"{_TMP}{path.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
