"""What tensorboard does not promise to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard.summary import hparams


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


def open_again(writer: Any) -> None:
    """Have a `SummaryWriter` that was closed open its next event file now. It would do so by itself when it writes."""
    if hasattr(writer, "_get_file_writer"):  # other ranks have a stand-in
        writer._get_file_writer()


def write_hyperparameters(writer: Any, chosen: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """A row of TensorBoard's page of hyperparameters; metrics are tags of scalars, which are not written here.

    `SummaryWriter.add_hparams` writes to a folder of its own, and each metric once more.
    """
    for summary in hparams(dict(chosen), dict(metrics)):
        writer._get_file_writer().add_summary(summary)
