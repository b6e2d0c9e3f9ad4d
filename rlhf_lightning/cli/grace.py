"""How long several ranks may take to end after a signal. Standard library only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GRACE_SECONDS = 20.0  # to save and end, on top of the grace period of the checkpoints
SAVE_SECONDS = 120.0  # in which something must change in a folder that is being written: hashing and flushing take long
GRACE_PERIOD_SECONDS = 5.0  # the default of `DurableCheckpoint`


class Grace:
    """How long ranks that were told to stop may still take: longer while a checkpoint or a model is being written."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        checkpoint = config.get("checkpoint") or {}
        self.seconds = float(checkpoint.get("grace_period_seconds", GRACE_PERIOD_SECONDS)) + GRACE_SECONDS
        sections = [section for section in config.values() if isinstance(section, Mapping)]
        self._parents = {Path(section["output"]).parent for section in sections if section.get("output")}
        self._checkpoints = Path(config.get("run_dir", ".")) / "checkpoints"
        self._seen: Any = None
        self._until = float("inf")
        self.told = False

    def begin(self) -> None:
        """The ranks were told."""
        self.told, self._until = True, time.monotonic() + self.seconds

    def over(self) -> bool:
        """Whether they were told long enough ago."""
        if time.monotonic() < self._until:
            return False
        written = self._being_written()
        if written and written != self._seen:
            self._until = time.monotonic() + SAVE_SECONDS
        self._seen, before = written, self._seen
        return not written or written == before

    def _being_written(self) -> list[Any]:
        """Names, sizes and times of all that lies in temporary folders."""
        folders = [*self._checkpoints.glob("*"), *self._parents]
        found = []
        for file in (file for folder in folders for file in folder.glob(".tmp-*/**/*")):
            with contextlib.suppress(OSError):
                status = file.stat()
                found.append((str(file), status.st_size, status.st_mtime_ns))
        return found
