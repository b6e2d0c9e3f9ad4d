"""JSON files that are no JSON Lines: one list of objects, or objects over several lines, read piece by piece."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rlhf_lightning.data.readers.jsonl import not_an_object, parse_json
from rlhf_lightning.data.readers.lines import MAX_LINE_BYTES
from rlhf_lightning.data.readers.problems import BadRow, Problems
from rlhf_lightning.data.readers.streams import opened
from rlhf_lightning.errors import DataError

_PIECE = 2**18  # bytes that are read at once
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_scan = json.JSONDecoder().raw_decode


def json_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(line, row, number) of each object of a list, or of objects that follow each other.

    Raises:
        DataError: the file is no JSON from some place on; what follows cannot be told from what is broken.
    """
    with opened(path) as file:
        text = _Text(path, file)
        text.skip_space()
        listed = text.take("[")
        for number in _numbers(text, listed):
            line, part = text.line, text.value(number)
            try:
                row = parse_json(part)
                if not isinstance(row, dict):
                    raise not_an_object(row)
            except BadRow as bad:
                column = bad.column if bad.column and "\n" not in part and not listed else None
                problems.add_bad(path, f"{line} (row {number})", BadRow(str(bad), column))
                continue
            yield line, row, number


def spans_lines(start: str, whole: bool) -> bool:
    """Whether a text begins with an object, or the beginning of one, that does not end on its first line.

    Args:
        start: what a file begins with.
        whole: whether that is all of it.
    """
    try:
        end = _scan(start)[1]
    except (ValueError, RecursionError):
        return not whole and start.split("\n", 1)[0].rstrip().endswith(("{", "["))
    return "\n" in start[:end].strip()


def _numbers(text: _Text, listed: bool) -> Iterator[int]:
    """1, 2, ... while another value begins."""
    number = 1
    text.skip_space()
    if listed and text.take("]"):
        return _end(text)
    while text.more():
        yield number
        number += 1
        text.skip_space()
        if not listed:
            text.take(",")
        elif text.take("]"):
            return _end(text)
        elif not text.take(","):
            raise text.broken("a comma or the end of the list is missing" if text.more() else _CUT)
        text.skip_space()
        if listed and text.peek() == "]":
            raise text.broken("trailing comma; remove it")
    if listed:
        raise text.broken(_CUT)


_CUT = "the list does not end; the file is cut off"


def _end(text: _Text) -> None:
    text.skip_space()
    if text.more():
        raise text.broken("something follows the list; write one list, or one object a line")


class _Text:
    """The text of a file, of which only the piece at hand is in memory."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self._file, self.line = path, file, 1
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._place, self._ended = "", 0, False

    def more(self) -> bool:
        """Whether anything is left."""
        return self._place < len(self._text) or self._fill()

    def peek(self) -> str:
        """The next character, or nothing."""
        return self._text[self._place] if self.more() else ""

    def take(self, character: str) -> bool:
        """Whether the next character is this one, which is then passed over."""
        found = self.peek() == character
        self._place += found
        return found

    def skip_space(self) -> None:
        """Pass over white space."""
        while self.more():
            end = _SPACE.match(self._text, self._place).end()  # type: ignore[union-attr]
            self.line += self._text.count("\n", self._place, end)
            self._place = end
            if end < len(self._text):
                return

    def value(self, number: int) -> str:
        """The text of the next value, which is passed over."""
        while True:
            try:
                end = _scan(self._text, self._place)[1]
                if end < len(self._text) or not self._fill():  # a number may go on in the next piece
                    break
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError):
                    raise self.broken(f"row {number}: lists or objects are nested too deeply; a row is flat") from error
                if len(self._text) - self._place > MAX_LINE_BYTES:
                    raise self.broken(f"row {number}: is longer than {MAX_LINE_BYTES} bytes, or not closed") from error
                if not self._fill():
                    assert isinstance(error, json.JSONDecodeError)
                    self.line += self._text.count("\n", self._place, error.pos)
                    raise self.broken(f"row {number}: broken JSON: {error.msg.lower()}") from error
        part = self._text[self._place : end]
        self.line += part.count("\n")
        self._place = end
        return part

    def broken(self, why: str) -> DataError:
        """The error for what stands here."""
        return DataError(f"{self.path}:{self.line}: {why}. The rows after it cannot be read; mend the file.")

    def _fill(self) -> bool:
        """Read on, twice as much while one value takes more than was read; whether there was anything."""
        if self._ended:
            return False
        kept = self._text[self._place :]
        raw = self._file.read(max(_PIECE, len(kept)))
        self._ended = not raw
        try:
            added = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self.line + kept.count("\n") + raw.count(b"\n", 0, error.start)
            where = f"{self.path}:{line}"
            raise DataError(
                f"{where}: byte 0x{error.object[error.start]:02x} is not UTF-8; save it as UTF-8."
            ) from error
        self._text, self._place = kept + added, 0
        return bool(added) or (not self._ended and self._fill())
