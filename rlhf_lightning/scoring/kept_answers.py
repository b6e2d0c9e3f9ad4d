"""Answers of a service, kept in files, so that the same question is asked once: in all runs, and after a resume."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import DiskError

log = logging.getLogger(__name__)


class KeptAnswers:
    """A dictionary from questions to answers, both JSON, in the files of a folder; threads may share it.

    Each process writes a file of its own, a line for each answer, so any number of them share the folder, on network
    storage too; they see each other's answers when they begin. A line that a crash cut off is asked for again.

    Args:
        folder: of the files; None keeps answers in memory only.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._known: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._file = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}.jsonl"

    def get(self, question: Any) -> Any:
        """The answer to a question, None if it was not asked."""
        with self._lock:
            return self._read().get(_digest(question))

    def put(self, question: Any, answer: Any) -> None:
        """Keep an answer that is not None; when this returns it outlives the process.

        Raises:
            DiskError: the disk does not take it.
        """
        digest = _digest(question)
        line = json.dumps({"digest": digest, "question": question, "answer": answer}, ensure_ascii=False) + "\n"
        with self._lock:
            self._read()[digest] = answer
            if self.folder is None:
                return
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                place = os.open(self.folder / self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    os.write(place, line.encode("utf-8", "backslashreplace"))
                finally:
                    os.close(place)
            except OSError as error:
                raise DiskError(f"{self.folder}: answers cannot be kept here ({error}); free the disk") from error

    def _read(self) -> dict[str, Any]:
        if self._known is None:
            self._known = {}
            for file in sorted(self.folder.glob("*.jsonl")) if self.folder is not None else ():
                damaged = 0
                for line in file.read_bytes().splitlines():
                    try:
                        kept = json.loads(line)
                        self._known[kept["digest"]] = kept["answer"]
                    except (ValueError, KeyError, TypeError):
                        damaged += 1
                if damaged:
                    log.warning("%s: %d lines are damaged, so their questions are asked again", file, damaged)
        return self._known


def _digest(question: Any) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
