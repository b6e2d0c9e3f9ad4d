"""What tensorboard does not promise to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tensorboard.summary.writer import event_file_writer


@contextmanager
def records_written_by(make: Callable[[Any], Any]) -> Iterator[None]:
    """Event files that are opened inside write their records with ``make(file)``.

    Relies on the name by which `event_file_writer` finds `RecordWriter`. An event file takes no other writer, and its
    thread dies silently of a full disk.
    """
    before = event_file_writer.RecordWriter
    event_file_writer.RecordWriter = make
    try:
        yield
    finally:
        event_file_writer.RecordWriter = before
