"""Files as bytes: unpacked by their first bytes, whatever their name, and text of any Unicode encoding as UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from rlhf_lightning.errors import DataError

EXTRA = "pip install 'rlhf_lightning[data]'"
"""What installs the readers of parquet, arrow, zstd and data sets."""
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MARKS = {  # of text that is not UTF-8; the longer ones first, since they begin with the shorter
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_ROWS = {  # what a file begins with that holds no rows, and what to give instead
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; run `git lfs pull`",
    b"PK\x03\x04": "a zip archive (or a spreadsheet); unpack it, or save the sheet as CSV",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x04\x22\x4d\x18": "packed by lz4; unpack it with `lz4 -d`",
    b"\xff\x06\x00\x00sNaPpY": "packed by snappy; unpack it, or pack it with gzip",
    b"FEA1": "a Feather file of the first kind; save it again as parquet",
    b"SQLite format 3": "an SQLite database; write the rows as .jsonl",
    b"\x89HDF": "an HDF5 file; write the rows as .jsonl",
    b"\x93NUMPY": "a NumPy array; write the rows as .jsonl",
    b"\x80\x04\x95": "a pickle, which is a program and is never opened; write the rows as .jsonl",
    b"\x80\x05\x95": "a pickle, which is a program and is never opened; write the rows as .jsonl",
    b"\x00\x05\x16\x07": "what macOS keeps beside a file of the same name without `._`; give that one",
    b"%PDF": "a PDF; write the rows as .jsonl",
    b"<!DOCTYPE": "a web page, not the file it shows; download the file itself",
    b"<!doctype": "a web page, not the file it shows; download the file itself",
    b"<html": "a web page, not the file it shows; download the file itself",
    b"<?xml": "XML; write the rows as .jsonl",
    b"Obj\x01": "an Avro file; write the rows as .jsonl or parquet",
    b"ORC": "an ORC file; write the rows as .jsonl or parquet",
}
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file, UTF-8 where they are text in UTF-16 or UTF-32.

    Raises:
        DataError: the file cannot be read, is damaged, or is of a kind that holds no rows; also while it is read.
    """
    try:
        with path.open("rb") as raw, _unpacked(path, raw) as plain:
            yield _as_utf8(cast("io.BufferedReader", plain))
    except _DAMAGED as error:
        raise DataError(f"{path}: {_reason(error)}.") from error


def head(path: Path, size: int) -> bytes:
    """The first bytes of a file as `opened` gives them."""
    with opened(path) as file:
        return file.read(size)


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, by its first bytes."""
    try:
        with path.open("rb") as file:
            return _packing(file.read(8)) is not None
    except OSError as error:
        raise DataError(f"{path}: {_reason(error)}.") from error


def _packing(first: bytes) -> str | None:
    return next((name for magic, name in _PACKED.items() if first.startswith(magic)), None)


def _unpacked(path: Path, raw: io.BufferedReader) -> IO[bytes]:
    name = _packing(raw.peek(8))
    if name == "gzip":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if name == "bzip2":
        return bz2.BZ2File(raw)
    if name == "xz":
        return lzma.LZMAFile(raw)
    if name == "zstd":
        return io.BufferedReader(_Zstd(path, raw))
    return raw


class _Zstd(io.RawIOBase):
    """A zstd file, which Python itself reads from 3.14 on, and pyarrow before."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        try:
            import pyarrow
        except ImportError:
            raise DataError(f"{path}: zstd needs pyarrow; {EXTRA}, or unpack the file with `zstd -d`.") from None
        self._inner: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        part = self._inner.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


class _Recoded(io.RawIOBase):
    """Text in another encoding as UTF-8."""

    def __init__(self, inner: IO[bytes], encoding: str) -> None:
        self._inner, self._decoder, self._left = inner, codecs.getincrementaldecoder(encoding)(), b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        while not self._left:
            part = self._inner.read(2**16)
            self._left = self._decoder.decode(part, final=not part).encode("utf-8")
            if not part:
                break
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _as_utf8(plain: io.BufferedReader) -> IO[bytes]:
    buffered = plain if hasattr(plain, "peek") else io.BufferedReader(plain)
    first = buffered.peek(512)[:512]
    kind = next((kind for magic, kind in _NO_ROWS.items() if first.startswith(magic)), None)
    if kind or first[257:262] == b"ustar":
        raise _NoRows(kind or "a tar archive; unpack it, and give the folder")
    encoding = next((name for mark, name in _MARKS.items() if first.startswith(mark)), None) or _without_mark(first)
    return io.BufferedReader(_Recoded(buffered, encoding), 2**16) if encoding else buffered


class _NoRows(OSError):
    """The file is of a kind that holds no rows."""


def _without_mark(first: bytes) -> str | None:
    """UTF-16 that does not say so: every other byte of its mostly Latin beginning is NUL."""
    even, odd = first[:64:2], first[1:64:2]
    if len(odd) < 4 or first.startswith((b"\xff\xff\xff\xff", b"PAR1", b"ARROW1")):
        return None
    if odd.count(0) > 0.9 * len(odd) and 0 not in even:
        return "utf-16-le"
    return "utf-16-be" if even.count(0) > 0.9 * len(even) and 0 not in odd else None


def _reason(error: BaseException) -> str:
    if isinstance(error, _NoRows):
        return f"is {error}"
    if isinstance(error, UnicodeDecodeError):
        return f"is text in {error.encoding}, and broken ({error.reason}); save it as UTF-8"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"the compressed file is damaged or cut off ({error}); write or download it again"
