"""What a killed run has left: read without the code that wrote it."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path


def saved_steps(run: Path) -> tuple[dict[str, int], list[str]]:
    """The newest step of each stage that has a folder, and the folders that are not what they say."""
    newest: dict[str, int] = {}
    damaged: list[str] = []
    for folder in (run / "checkpoints").glob("*/step-*"):
        stage, step = folder.parent.name, int(folder.name.removeprefix("step-"))
        newest[stage] = max(newest.get(stage, 0), step)
        if not _is_whole(folder):
            damaged.append(str(folder))
    return newest, damaged


def finished_files(run: Path) -> dict[str, object]:
    """SHA-256 of every file that a stage handed over, without the accounts of when and where."""
    files = [file for file in sorted(run.glob("*/*")) if (file.parent / "provenance.json").is_file()]
    return {
        f"{file.parent.name}/{file.name}": _sha256(file)
        for file in files
        if file.is_file() and file.name not in ("provenance.json", "README.md", "figure.png")
    }


def done_steps(run: Path) -> dict[str, int]:
    """The last step of each stage that the run has told of, in its history."""
    files = (run / "history").glob("*.csv")
    return {file.stem: max((int(row["step"]) for row in history_rows(file)), default=0) for file in files}


def history_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a history without the columns that tell the time."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k != "seconds" and not k.startswith("perf/")} for row in rows]


def _is_whole(folder: Path) -> bool:
    try:
        record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        return all(_sha256(folder / name) == file["sha256"] for name, file in record["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
