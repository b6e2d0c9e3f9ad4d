"""The lines of a text file as bytes and as text, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rlhf_lightning.data.readers.problems import BadRow
from rlhf_lightning.data.readers.streams import opened

MAX_LINE_BYTES = 16 * 2**20  # a longer line is a broken file, and reading it would need unbounded memory
MARK = b"\xef\xbb\xbf"  # at the beginning of a file, and where files that had one were joined


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each line, without byte order mark; of a line over the limit only its beginning.

    Raises:
        DataError: the file cannot be read.
    """
    with opened(path) as file:
        for number, raw in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), start=1):
            if len(raw) > MAX_LINE_BYTES:
                part = raw
                while part and not part.endswith(b"\n"):
                    part = file.readline(2**16)
            yield number, raw.removeprefix(MARK)


def decode(raw: bytes) -> str:
    """The text of a line.

    Raises:
        BadRow: too long, or not UTF-8.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise BadRow(f"the line is longer than {MAX_LINE_BYTES} bytes; split or shorten the row")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode("utf-8")) + 1
        raise BadRow(f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8", column) from error
