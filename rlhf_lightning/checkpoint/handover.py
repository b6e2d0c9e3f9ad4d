"""Hand-over folders between stages: written whole or not at all, and verified before they are read.

A folder holds the files of its stage (a Hugging Face model, or ``rankings.jsonl``) plus ``provenance.json``, which
names the stage, its parents, its configuration and metrics, the versions used, the SHA-256 and size of every other
file, and the SHA-256 of all this. No torch import here: a command line that only checks folders starts at once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rlhf_lightning.checkpoint.exchange import exchange
from rlhf_lightning.errors import CheckpointError, DiskError

PROVENANCE = "provenance.json"
SCHEMA = 2
_UNSEALED = 1  # the schema before, without a checksum of the record itself; still read
TMP, _ASIDE = ".tmp-", "-old"
_PACKAGES = ("rlhf-lightning", "torch", "lightning", "transformers", "hydra-core")


def write_folder(path: str | Path, write: Callable[[Path], None], provenance: Mapping[str, Any], size: int = 0) -> Path:
    """Let ``write`` fill a temporary sibling of ``path``, seal it with ``provenance.json`` and rename it into place.

    A crash at any moment leaves the previous folder as it was. Files and folder are flushed to disk before the rename,
    and the rename itself before this returns.

    Args:
        path: where the finished folder will be; an older one there is replaced.
        write: called with the temporary folder.
        provenance: plain data: ``stage``, ``parents``, ``config``, ``metrics``; file checksums and versions are added.
        size: bytes that ``write`` is going to need, if they are known.

    Raises:
        DiskError: the place cannot be written to, or is full; the message names it, the bytes needed and those free.
    """
    path, tmp = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        if size > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        tmp = Path(tempfile.mkdtemp(prefix=f"{TMP}{path.name}-", dir=path.parent))
        write(tmp)
        record = {"schema": SCHEMA, **provenance, "versions": _versions(), "files": _digests(tmp)}
        (tmp / PROVENANCE).write_text(_sealed(record), encoding="utf-8")
        _flush(*tmp.rglob("*"), tmp)
        tmp.chmod(0o755)
        _swap(tmp, path)
    except (OSError, SafetensorError) as error:
        raise DiskError(_no_place(path, tmp, size, error)) from error
    finally:
        if tmp is not None:
            _remove(tmp)
    return path


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """The provenance of a folder, or None for one that another tool wrote.

    Raises:
        CheckpointError: the file is there but is not what this library wrote, to the last byte.
    """
    file = Path(path) / PROVENANCE
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8")
        record = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: not readable as JSON ({error}); the folder is damaged, write it again"
        ) from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema not in (SCHEMA, _UNSEALED):
        raise CheckpointError(
            f"{file}: schema {schema}, expected {SCHEMA}; another program or another version of this library wrote it: "
            "use that one, or write the folder again"
        )
    record.pop("sha256", None)
    if schema == SCHEMA and _sealed(record) != text:
        raise CheckpointError(f"{file}: differs from its own checksum; it was changed or is damaged")
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
    if not isinstance(record.get("files"), dict):
        raise CheckpointError(f"{path}: {PROVENANCE} lists no files; the folder is damaged, write it again")
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


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what a crash left in ``folder``, of the entry ``name`` or of all; nobody may be writing there.

    Where folders cannot trade places a crash can fall between two renames; then the old one gets its name back.
    """
    for left in folder.glob(f"{TMP}*"):
        owner, _, rest = left.name.removeprefix(TMP).rpartition("-")
        if name is not None and owner != name:
            continue
        if f"-{rest}" == _ASIDE and not (folder / owner).exists():
            os.rename(left, folder / owner)
        else:
            _remove(left)


def remove_folder(path: Path) -> None:
    """Delete a folder; it loses its name first, so that no half of it is ever found under it."""
    aside = path.with_name(f"{TMP}{path.name}-gone")
    _remove(aside)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    _remove(aside)


def probe(folder: Path) -> None:
    """Write a small file where ``folder`` is, or will be, and remove it.

    Raises:
        DiskError: that is not possible.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(prefix=TMP, dir=place) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(f"{folder}: cannot write here ({error}); choose another run_dir or free the disk") from error


def _sealed(record: Mapping[str, Any]) -> str:
    """The record as text that holds a checksum of its own rest; equal records give equal text."""
    plain = json.loads(json.dumps(record, default=str))
    rest = json.dumps(plain, indent=2, sort_keys=True)
    return json.dumps(plain | {"sha256": hashlib.sha256(rest.encode()).hexdigest()}, indent=2, sort_keys=True) + "\n"


def _no_place(path: Path, tmp: Path | None, size: int, error: Exception) -> str:
    written = sum(file.stat().st_size for file in tmp.rglob("*") if file.is_file()) if tmp is not None else 0
    place = path.parent
    while not place.exists():
        place = place.parent
    return (
        f"{path}: cannot write here ({error}); {f'{size:,}' if size else f'more than {written:,}'} bytes are needed "
        f"and {shutil.disk_usage(place).free:,} free; what was there before is unchanged. Free the disk or choose "
        "another run_dir"
    )


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


def _flush(*entries: Path) -> None:
    for entry in entries:
        handle = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap(tmp: Path, path: Path) -> None:
    """Rename ``tmp`` to ``path``; an older folder takes its place there, or steps aside first, and goes last."""
    if not path.exists():
        os.rename(tmp, path)
    elif not exchange(tmp, path):
        aside = path.with_name(f"{TMP}{path.name}{_ASIDE}")
        os.rename(path, aside)
        os.rename(tmp, path)
        _flush(path.parent)
        _remove(aside)
    _flush(path.parent)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with suppress(OSError):
            entry.unlink()
