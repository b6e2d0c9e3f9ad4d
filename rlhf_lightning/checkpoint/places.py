"""What may be written, replaced and deleted: what is not there yet, and what this library itself has written.

Every writer of the library goes through here or through `rlhf_lightning.checkpoint.folders`, which asks `foreign`.
Nothing is followed through a link: a link, a device or a file with a second name is not ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlhf_lightning.checkpoint.provenance import CARD, MARK, PROVENANCE, own_card, read_provenance, verify_folder
from rlhf_lightning.errors import CheckpointError, DiskError

TMP, ASIDE, LOCK = ".tmp-", "-old", ".rlhf_lightning.lock"
_OWNER = "process "  # how the text of a lock begins


def foreign(path: Path, whole: bool = True) -> str:
    """Why a place may not be replaced, or nothing if it may: it is free, or a folder of ours and of nothing else.

    Args:
        path: a folder that is to be written.
        whole: look at every file, which reads them all; otherwise at the record only.
    """
    if path.is_symlink():
        return "is a link"
    if not path.exists():
        return ""
    if not path.is_dir():
        return "is a file"
    with suppress(CheckpointError):
        if not (names := sorted(entry.name for entry in path.iterdir())):
            return ""
        record = read_provenance(path)
        if record is None:
            return f"holds files that this library has not written ({names[0]})"
        known = {*record.get("files", {}), PROVENANCE, *own_card(path)}
        for entry in sorted(path.rglob("*")):
            name = entry.relative_to(path).as_posix()
            if entry.is_symlink() or (name not in known and not entry.is_dir()):
                return f"holds {name}, which this library has not written" + " like this" * (name == CARD)
        if whole:
            verify_folder(path)
        return ""
    return "was changed after this library had written it, or is damaged"


def links(path: Path) -> Iterator[Path]:
    """Every link at and below a path, and everything that is neither file nor folder; links are not followed."""
    if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
        yield path
    elif path.is_dir():
        for entry in sorted(path.iterdir()):
            yield from links(entry)


def write_file(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all: beside its place, flushed, renamed. Its folder is made; a link is replaced.

    Raises:
        DiskError: the disk does not take it; what was there is unchanged.
    """
    tmp = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f"{TMP}{path.name}-", dir=path.parent, delete=False) as stream:
            tmp = Path(stream.name)
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        tmp.chmod(0o644)
        os.replace(tmp, path)
    except OSError as error:
        raise DiskError(
            f"{path}: cannot write here ({error}); what was there before is unchanged. Free the disk or choose another"
            " place"
        ) from error
    finally:
        if tmp is not None:
            tmp.unlink(missing_ok=True)
    return path


@contextmanager
def lock(place: Path, inside: bool = False, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing a place; the system frees the lock with this process, however that ends.

    Args:
        place: where this process is going to write.
        inside: the lock lies in the folder and stays there; otherwise it lies beside it as long as it holds.
        wait: for the process that has it, instead of an error.

    Raises:
        CheckpointError: another process has it, or a file that is not ours has its name.
        DiskError: it cannot be written.
    """
    file = place / LOCK if inside else place.with_name(f".{place.name}{LOCK}")
    stream = _locked(file, place, wait)
    try:
        yield
    finally:
        if not inside:
            file.unlink(missing_ok=True)
        os.close(stream)


def is_locked(place: Path) -> bool:
    """Whether a process writes in a folder now, by the lock that lies in it."""
    try:
        stream = os.open(place / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(stream)
    return False


def _locked(file: Path, what: Path, wait: bool) -> int:
    """An open and locked file that still has its name: the process before may have taken that away."""
    while True:
        try:
            stream = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CheckpointError(f"{file}: is a link; remove it") from error
            raise DiskError(f"{what}: cannot write here ({error}); choose another place") from error
        found = os.fstat(stream)
        ours = stat.S_ISREG(found.st_mode) and found.st_nlink < 2
        owner = os.pread(stream, 200, 0).decode(errors="replace").strip() if ours else ""
        if not ours or (owner and not owner.startswith(_OWNER)):
            os.close(stream)
            raise CheckpointError(f"{file}: is not a lock of this library; move it away, or choose another place")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(stream)
            owner = owner or "another process"
            raise CheckpointError(f"{what}: in use by {owner}; wait for it or choose another place") from None
        with suppress(FileNotFoundError):
            if os.stat(file).st_ino == found.st_ino:
                break
        os.close(stream)
    os.ftruncate(stream, 0)
    os.pwrite(stream, f"{_OWNER}{os.getpid()} on {platform.node()}\n".encode(), 0)
    return stream


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what a crash left in ``folder``, of the entry ``name`` or of all; nobody may be writing there.

    Where folders cannot trade places a crash can fall between two renames; then the old one gets its name back. What
    only looks like ours stays.
    """
    for left in folder.glob(f"{TMP}*"):
        owner, _, rest = left.name.removeprefix(TMP).rpartition("-")
        if (name is not None and owner != name) or not _left_by_us(left):
            continue
        if f"-{rest}" == ASIDE and not (folder / owner).exists():
            os.rename(left, folder / owner)
        else:
            remove(left)


def remove_folder(path: Path, whole: bool = True) -> None:
    """Delete a folder of ours; it loses its name first, so that no half of it is ever found under it.

    Args:
        path: the folder.
        whole: read its files first, see `foreign`; not needed for one that this process has written.

    Raises:
        CheckpointError: something in it is not ours, or was changed; nothing is deleted.
    """
    if reason := foreign(path, whole):
        raise CheckpointError(f"{path}: {reason}; it is left as it is")
    aside = path.with_name(f"{TMP}{path.name}-gone")
    if aside.exists():
        sweep(path.parent, path.name)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    remove(aside)


def remove(folder: Path) -> None:
    """Delete a folder that is known to be ours; what a crash in between would know it by goes last."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in (MARK, PROVENANCE):
                entry.unlink()
        for name in (PROVENANCE, MARK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def free_name(path: Path, word: str) -> Path:
    """A name beside ``path`` that nothing has: ``NAME.WORD-1``, or the next number."""
    number, path = 1, named(path)
    while os.path.lexists(beside := path.with_name(f"{path.name}.{word}-{number}")):
        number += 1
    return beside


def named(path: Path) -> Path:
    """The same folder by its name, where it is given as ``.`` or by ``..``."""
    return path.resolve() if path.name in ("", "..") else path


def _left_by_us(entry: Path) -> bool:
    if entry.is_symlink() or not entry.is_dir():
        return False
    with suppress(CheckpointError):
        return not any(entry.iterdir()) or (entry / MARK).is_file() or read_provenance(entry) is not None
    return False
