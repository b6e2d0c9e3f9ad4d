"""What a stage learns from, as it was when the stage began: this is what its ``provenance.json`` names."""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint import read_provenance
from rlhf_lightning.checkpoint.provenance import PROVENANCE, sha256
from rlhf_lightning.config.tree import dotted, walk
from rlhf_lightning.data.readers.arrow import is_saved_dataset
from rlhf_lightning.data.readers.places import exists, holds_rows, is_pattern, sources
from rlhf_lightning.errors import DataError

MODEL_FILES = (".json", ".safetensors", ".jinja", ".model")  # of a model that another tool wrote
WORD_FILES = ("merges.txt", "vocab.txt")  # of its tokenizer
_ROW_KEY = re.compile(r"\.data\.(train|validation)$|\.(human_ranks|rows)$")
Stamp = tuple[int, int, int, int]
log = logging.getLogger(__name__)


class Parents:
    """Checksums of data files and model folders, taken before they are read.

    A folder of this library is named by its own provenance, which is verified when it is loaded. Of any other the files
    of rows, weights, config and tokenizer are read once for their SHA-256, at 0.5 to 1.5 GB/s.

    Args:
        paths: files, folders, lists of them, or names on the hub, by the part they play; None is left out.
    """

    def __init__(self, paths: Mapping[str, str | Sequence[str] | None]) -> None:
        self._stamps: dict[Path, Stamp | None] = {}
        self._identities = {name: self._identity(path) for name, path in paths.items() if path}

    def record(self) -> dict[str, Any]:
        """The parents by name, as they were at the start; a warning names the files that have changed since."""
        changed = [str(file) for file, stamp in self._stamps.items() if _stamp(file) != stamp]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            log.warning(
                "%s%s changed while the stage was running; %s names what was there when it began, which it has "
                "learned from", ", ".join(changed[:3]), more, PROVENANCE,
            )  # fmt: skip
        return self._identities

    def _identity(self, path: str | Sequence[str]) -> Any:
        if not isinstance(path, str):
            return [self._identity(one) for one in path]
        place = Path(path)
        if place.is_file():
            return {"path": path, "sha256": self._sha256(place)}
        record = read_provenance(place) if place.is_dir() else None
        if record is not None:
            self._stamps[place / PROVENANCE] = _stamp(place / PROVENANCE)
            return {"path": path, "stage": record.get("stage"), "files": record["files"]}
        if is_pattern(path) and not place.exists():
            files = {str(file): file for file in sources(place)}
        else:
            files = {file.relative_to(place).as_posix(): file for file in _files(place)}
        told = {n: {"sha256": self._sha256(file), "bytes": file.stat().st_size} for n, file in files.items()}
        return {"path": path, "stage": None, "files": told}

    def _sha256(self, file: Path) -> str:
        stamp = self._stamps[file] = _stamp(file)
        return _digest(file, stamp)


def changed_parents(recorded: Mapping[str, Any], named: Container[str]) -> list[str]:
    """The parents that are not any more what they were when a stage read them.

    Those that are gone or cannot be read any more are not judged, nor those of whose content nothing was recorded.

    Args:
        recorded: what `Parents.record` said then.
        named: the paths to look at: a copied run has others.
    """
    identities = [one for each in recorded.values() for one in (each if isinstance(each, list) else [each])]
    known = {one["path"]: one for one in identities if isinstance(one, Mapping) and "path" in one}
    changed: list[str] = []
    for path, then in known.items():
        if path in named and exists(path) and (then.get("sha256") or then.get("files")):
            with suppress(OSError, DataError):
                changed += [path] * (Parents({"now": path}).record()["now"] != then)
    return changed


def row_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files of rows that a config names, by key: a file that was moved is the same file."""
    found: dict[str, list[str]] = {}
    for entry in walk(config):
        key = dotted(tuple(name for name in entry.path if not isinstance(name, int)))
        if isinstance(entry.value, str) and entry.value and _ROW_KEY.search(key):
            with suppress(OSError, ValueError):
                place = Path(entry.value)
                found.setdefault(key, []).append(_digest(place, _stamp(place)) if place.is_file() else entry.value)
    return {key: "+".join(digests) for key, digests in found.items()}


def _files(folder: Path) -> list[Path]:
    """The files of a folder that count; those in its sub-folders where it holds neither rows nor weights itself."""
    top = [file for file in sorted(folder.glob("*")) if _counts(file)]
    if any(holds_rows(file) or file.suffix == ".safetensors" for file in top):
        return [file for file in top if not (is_saved_dataset(folder) and file.match("cache-*.arrow"))]
    below = ((file, file.relative_to(folder)) for file in sorted(folder.rglob("*")) if _counts(file))
    return [file for file, name in below if not any(part.startswith(".") for part in name.parts)]


def _counts(file: Path) -> bool:
    known = file.suffix.lower() in MODEL_FILES or file.name in WORD_FILES or holds_rows(file)
    return known and file.is_file()


@lru_cache(maxsize=256)
def _digest(file: Path, stamp: Stamp | None) -> str:
    """The checksum; read again only if the file has changed, as one model is the parent of several stages."""
    return sha256(file)


def _stamp(file: Path) -> Stamp | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
