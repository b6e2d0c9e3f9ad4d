"""JSON Lines: one object a line, read strictly; what cannot be read is named by line and column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from rlhf_lightning.data.readers.lines import decode, raw_lines
from rlhf_lightning.data.readers.problems import BadRow, Problems

MAX_DEPTH = 64  # lists and objects within each other; a conversation has 3
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_STRING_OR_NUMBER = re.compile(r'"(?:[^"\\]++|\\.)*+"|-?Infinity|NaN|\d{4301,}')


def jsonl_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of each line that holds an object; the others go to ``problems``, blank ones are passed over."""
    for number, raw in raw_lines(path):
        try:
            text = decode(raw)
            if text[-1:] == "\r":
                text = text.rstrip("\r")
            row = _plain(text)
            if row is None:
                if not raw.strip():
                    continue
                row = _strict(text)
                if not isinstance(row, dict):
                    raise not_an_object(row)
        except BadRow as bad:
            problems.add_bad(path, number, bad)
            continue
        yield number, row


def parse_json(text: str) -> Any:
    """The value that ``text`` holds.

    Raises:
        BadRow: broken JSON, a key twice, NaN, a number of thousands of digits, NUL, a lone surrogate, or nesting.
    """
    value = _plain(text)
    return _strict(text) if value is None else value


def _strict(text: str) -> Any:
    """The value, looked at closely."""
    try:
        value = _decode_json(text)
    except json.JSONDecodeError as error:
        raise BadRow(_explain(text, error), error.colno) from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise BadRow(str(error), _column_of_number(text)) from error
    if "\\u" in text:
        _check_escapes(text, value)
    if text.count("[") + text.count("{") > MAX_DEPTH:
        check_depth(value)
    return value


def _plain(text: str) -> dict[str, Any] | None:
    """A flat row that needs no closer look, in a third of the time: a key that is there twice shows as quotes more.

    None where the row is not flat, or could hold what `parse_json` refuses.
    """
    quotes = text.count('"')
    place = text.find("\\")
    while place >= 0:  # in steps, since looking for two letters at once takes longer than reading the row
        if (escaped := text[place + 1 : place + 2]) == "u":
            return None
        quotes -= escaped == '"'
        place = text.find("\\", place + 2)
    try:
        value, end = _scan(text, 0)
    except (StopIteration, ValueError, RecursionError):
        return None
    if end != len(text) or type(value) is not dict:
        return None
    kinds = [*map(type, value.values())]
    return value if quotes == 2 * (len(kinds) + kinds.count(str)) and _FLAT.issuperset(kinds) else None


def check_depth(value: Any) -> None:
    """Raise `BadRow` if lists and objects are nested deeper than any row needs."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _children(outer) if isinstance(inner, (dict, list))]
        if not level:
            return
    raise _too_deep()


def strings(value: Any) -> Iterator[str]:
    """Every string of a value, keys included."""
    open_values = [value]
    while open_values:
        current = open_values.pop()
        if isinstance(current, str):
            yield current
        elif isinstance(current, dict):
            open_values += [*current.keys(), *current.values()]
        elif isinstance(current, list):
            open_values += current


def _children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def not_an_object(value: Any) -> BadRow:
    """What is wrong with a value that is no row."""
    advice = "one object { } a line, not one list for the whole file" if isinstance(value, list) else "a row as {...}"
    return BadRow(f"the line is a {type(value).__name__}, not an object; write {advice}", 1)


def _too_deep() -> BadRow:
    return BadRow("lists or objects are nested too deeply; a row is flat", 1)


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(f"{twice[:40]}: is there more than once; keep one")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null or leave the field out")


_FLAT = {str, bool, int, type(None)}
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # what decode calls
_decode_json = json.JSONDecoder(object_pairs_hook=_without_repeated_keys, parse_constant=_refuse_constant).decode


def _column_of_number(text: str) -> int | None:
    """Where NaN, Infinity or a number of thousands of digits stands; None if there is none outside strings."""
    found = (match.start() for match in _STRING_OR_NUMBER.finditer(text) if match[0][0] != '"')
    return next((start + 1 for start in found), None)


def _explain(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data":
        rest = text[error.pos :].strip()
        return "remove the comma after the object" if rest == "," else "more than one value; write one object a line"
    before = text[: error.pos].rstrip()
    if before.endswith(",") and text[error.pos : error.pos + 1] in "}]":
        return "broken JSON: trailing comma; remove it"
    if "\x00" in text[error.pos : error.pos + 1]:
        return "NUL character; remove it"
    return f"broken JSON: {error.msg[0].lower()}{error.msg[1:]}"


def _check_escapes(text: str, value: Any) -> None:
    """Refuse strings that cannot be written as UTF-8 or hold NUL; both reach a value only through an escape."""
    for part in strings(value):
        if "\x00" in part:
            raise BadRow("NUL character; remove it", text.find("\\u0000") + 1)
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            column = _lone_surrogate(text) + 1
            raise BadRow("lone surrogate (half of an emoji?); remove it or write both halves", column) from error


def _lone_surrogate(text: str) -> int:
    high: re.Match[str] | None = None
    for match in _UNICODE_ESCAPE.finditer(text):
        code = int(match[1], 16)
        if high is not None and not (0xDC00 <= code <= 0xDFFF and match.start() == high.end()):
            return high.start()
        if high is None and 0xDC00 <= code <= 0xDFFF:
            return match.start()
        high = match if 0xD800 <= code <= 0xDBFF else None
    return high.start() if high is not None else 0
