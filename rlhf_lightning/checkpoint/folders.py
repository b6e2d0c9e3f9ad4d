"""Hand-over folders between stages: written whole or not at all, and only where nothing of the user's is replaced."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rlhf_lightning.checkpoint.places import ASIDE, TMP, foreign, free_name, remove, sweep
from rlhf_lightning.checkpoint.provenance import MARK, PROVENANCE, describe
from rlhf_lightning.checkpoint.swap import exchange
from rlhf_lightning.errors import CheckpointError, DiskError


def write_folder(
    path: str | Path, write: Callable[[Path], Mapping[str, Any] | None], provenance: Mapping[str, Any], size: int = 0
) -> Path:
    """Let ``write`` fill a temporary sibling of ``path``, seal it with ``provenance.json`` and rename it into place.

    A crash at any moment leaves the previous folder as it was. Files and folder are flushed to disk before the rename,
    and the rename itself before this returns.

    Args:
        path: where the finished folder will be. What is there is replaced only if it is an empty folder, or one of this
            library whose files are all as it wrote them and which holds no others.
        write: called with the temporary folder; may return the ``sha256`` and ``bytes`` of files by name, which are not
            read again then.
        provenance: plain data: ``stage``, ``parents``, ``config``, ``metrics``; file checksums and versions are added.
        size: bytes that ``write`` is going to need, if they are known.

    Raises:
        CheckpointError: something else is at ``path``. Where it came while ``write`` was at work, the new folder is
            kept beside it and named.
        DiskError: the place cannot be written to, or is full; the message names it, the bytes needed and those free.
    """
    path, tmp = Path(path), None
    if reason := foreign(path, whole=False):
        raise CheckpointError(f"{path}: {reason}; nothing was changed. Choose another place, or move it away")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        if size > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        tmp = Path(tempfile.mkdtemp(prefix=f"{TMP}{path.name}-", dir=path.parent))
        (tmp / MARK).touch()
        known = write(tmp)
        known = known if isinstance(known, Mapping) else {}
        (tmp / PROVENANCE).write_text(describe(tmp, provenance, known), encoding="utf-8")
        (tmp / MARK).unlink()
        _flush(*tmp.rglob("*"), tmp)
        tmp.chmod(0o755)
        if reason := foreign(path):
            beside = free_name(path, "new")
            os.rename(tmp, beside)
            raise CheckpointError(f"{path}: {reason}; it is left as it is, and the new folder is {beside}")
        _swap(tmp, path)
    except (OSError, SafetensorError) as error:
        raise DiskError(_no_place(path, tmp, size, error)) from error
    finally:
        if tmp is not None and tmp.exists():
            remove(tmp)
    return path


def probe(folder: Path) -> None:
    """Write a small file where ``folder`` is, or will be, and remove it.

    Raises:
        DiskError: that is not possible.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix=TMP, dir=_existing(folder)) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(f"{folder}: cannot write here ({error}); choose another run_dir or free the disk") from error


def _no_place(path: Path, tmp: Path | None, size: int, error: Exception) -> str:
    written = sum(file.stat().st_size for file in tmp.rglob("*") if file.is_file()) if tmp is not None else 0
    return (
        f"{path}: cannot write here ({error}); {f'{size:,}' if size else f'more than {written:,}'} bytes are needed "
        f"and {shutil.disk_usage(_existing(path.parent)).free:,} free; what was there before is unchanged. Free the "
        "disk or choose another run_dir"
    )


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


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
        aside = path.with_name(f"{TMP}{path.name}{ASIDE}")
        os.rename(path, aside)
        os.rename(tmp, path)
        _flush(path.parent)
        remove(aside)
    _flush(path.parent)
