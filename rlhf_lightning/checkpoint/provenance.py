"""What a folder of this library says of itself: a sealed record of where it comes from and of every file in it.

``provenance.json`` names the stage, its parents, its configuration and metrics, the versions used, the SHA-256 and size
of every other file, and the SHA-256 of all this. No torch import here: a command line that only checks folders starts
at once.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import CheckpointError

PROVENANCE = "provenance.json"
MARK = ".rlhf_lightning"  # in a folder that is being filled or deleted, so that a later run knows whose it is
CARD, FIGURE = "README.md", "figure.png"  # for people, who may change them: the record does not name them
_CARD_ENDS = "\n<!-- rlhf-lightning card {} {} -->\n"  # its last line: checksums of what is above, and of the figure
SCHEMA = 2
_UNSEALED = 1  # the schema before, without a checksum of the record itself; still read
AGAIN = f"Run the stage again or, if you changed the file yourself, delete {PROVENANCE} beside it"
_PACKAGES = ("rlhf-lightning", "torch", "lightning", "transformers", "hydra-core")


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """The provenance of a folder, or None for one that another tool wrote.

    Raises:
        CheckpointError: the file is there but is not what this library wrote, to the last byte.
    """
    file = Path(path) / PROVENANCE
    return read_sealed(file) if file.is_file() else None


def verify_folder(path: str | Path, expect_stage: str | None = None, part: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """Check every file of a hand-over folder against its checksum and return the provenance.

    Args:
        path: a folder written by `rlhf_lightning.checkpoint.write_folder`.
        expect_stage: refuse a folder that another stage wrote.
        part: k of n: compute the checksums of every n-th file only, from the k-th on; n processes share the work.

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
    for number, (name, want) in enumerate(record["files"].items()):
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"{file}: leads out of its folder, though {PROVENANCE} lists it; do not use it")
        if not file.is_file():
            raise CheckpointError(f"{file}: missing, though {PROVENANCE} lists it; run the stage again")
        if file.stat().st_size != want["bytes"]:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes, expected {want['bytes']}. {AGAIN}")
        if number % part[1] == part[0] and sha256(file) != want["sha256"]:
            raise CheckpointError(f"{file}: checksum differs from {PROVENANCE}; it was changed or is damaged. {AGAIN}")
    return record


def read_json(file: Path) -> dict[str, Any]:
    """An object from a JSON file; empty where there is no such file, or something else in it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def describe(folder: Path, provenance: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The text of ``provenance.json`` for the files in a folder; those whose entries are ``known`` are not read."""
    apart = [folder / name for name in (PROVENANCE, MARK, CARD, FIGURE)]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in apart)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    digests = {n: known.get(n) or {"sha256": sha256(p), "bytes": p.stat().st_size} for n, p in names.items()}
    return sealed({"schema": SCHEMA, **provenance, "versions": versions(), "files": digests})


def marked_card(text: str, figure: bytes = b"") -> str:
    """A model card with a last line by which `own_card` knows it, and its figure, as long as nobody changes them."""
    return text + _CARD_ENDS.format(*(hashlib.sha256(part).hexdigest() for part in (text.encode(), figure)))


def own_card(folder: Path) -> set[str]:
    """Of `CARD` and `FIGURE` those that are as this library wrote them."""
    found = {name: (folder / name).read_bytes() for name in (CARD, FIGURE) if (folder / name).is_file()}
    text = found.get(CARD, b"").decode(errors="replace")
    body, figure = text.rpartition("\n<!--")[0], found.get(FIGURE, b"")
    return (
        set(found) if text == marked_card(body, figure) else {CARD} & set(found) if text == marked_card(body) else set()
    )


def sha256(file: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sealed(record: Mapping[str, Any]) -> str:
    """The record as text that holds a checksum of its own rest; equal records give equal text."""
    plain = json.loads(json.dumps(record, default=str))
    rest = json.dumps(plain, indent=2, sort_keys=True)
    return json.dumps(plain | {"sha256": hashlib.sha256(rest.encode()).hexdigest()}, indent=2, sort_keys=True) + "\n"


def read_sealed(file: Path) -> dict[str, Any]:
    """The record in a file that `sealed` wrote.

    Raises:
        CheckpointError: it is not what this library wrote, to the last byte.
    """
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
    if schema == SCHEMA and sealed(record) != text:
        raise CheckpointError(f"{file}: differs from its own checksum; it was changed or is damaged")
    assert isinstance(record, dict)
    return record


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def weights_sha256(folder: str | Path) -> str:
    """What tells the weights of a model from others, wherever its folder lies: one checksum over those of their files.

    They are taken from the record of the folder, which is verified when the model is loaded, or else read.

    Raises:
        CheckpointError: no weights are there, or the record is damaged.
    """
    record = read_provenance(folder) or {"files": {}}
    found = {name: file["sha256"] for name, file in record["files"].items() if name.endswith(".safetensors")}
    found = found or {file.name: sha256(file) for file in Path(folder).glob("*.safetensors")}
    if not found:
        raise CheckpointError(f"{folder}: no weights are there; give the folder of a model, with model.safetensors")
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
