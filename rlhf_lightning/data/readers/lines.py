"""The lines of a text file as bytes and as text, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlhf_lightning.data.readers.problems import BadRow
from rlhf_lightning.data.readers.streams import opened

MAX_LINE_BYTES = 16 * 2**20  # a longer line is a broken file, and reading it would need unbounded memory
_PIECE = 2**17  # bytes that are read at once
MARK = b"\xef\xbb\xbf"  # at the beginning of a file, and where files that had one were joined


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each line, without its end and byte order mark; of a line over the limit only its beginning.

    Raises:
        DataError: the file cannot be read.
    """
    number, rest, mark = 0, b"", MARK
    with opened(path) as file:
        while chunk := file.read(_PIECE):
            lines = chunk.split(b"\n")
            lines[0] = rest + lines[0] if len(rest) <= MAX_LINE_BYTES else rest
            rest = lines.pop()
            for raw in lines:
                number += 1
                yield number, raw[3:] if raw[:3] == mark else raw
    if rest:
        yield number + 1, rest.removeprefix(mark)


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
