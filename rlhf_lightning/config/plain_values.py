"""Values that are plain for a shell and not for Hydra: paths with ``=``, brackets, quotes, other letters, ``~``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from rlhf_lightning.errors import ConfigError

_WORD = re.compile(r"([+~]{0,2}[A-Za-z_][\w.@/:-]*=)(.+)", re.DOTALL)
_EMPTY = re.compile(r"([+]{0,2}[A-Za-z_][\w.@/:-]*)=\s*")
_PLAIN = re.compile(r"[\w./:@%+-]*", re.ASCII)


def readable(words: Sequence[str]) -> list[str]:
    r"""The words of a command line, values in quotes where Hydra could not read them, or not as the file of that name.

    A value that Hydra can read is left as it is, so lists, objects and sweeps keep their meaning, unless a file or
    folder has exactly this name. ``~/`` is the home folder.

    Raises:
        ConfigError: nothing stands behind the ``=``.

    >>> readable(["data.prompts=a=b [1].jsonl", "data.columns={prompt: q}", "data.prompt_template=Q: {q}"])
    ["data.prompts='a=b [1].jsonl'", 'data.columns={prompt: q}', "data.prompt_template='Q: {q}'"]

    A logger as an object takes the place of the group's, and none may be called as Lightning calls it.

    >>> readable(["logger={_target_: my.Logger}", "logger=false"])
    ['logger=none', '+logger={_target_: my.Logger}', 'logger=none']
    """
    return [read for word in words for read in _loggers(_readable(word))]


def check_whole(words: Sequence[str]) -> None:
    """Refuse a list or object that a shell has taken apart at its spaces.

    Raises:
        ConfigError: says how it is written as one word.

    >>> check_whole(["data.columns={prompt:", "question}"])
    Traceback (most recent call last):
    rlhf_lightning.errors.ConfigError: data.columns={prompt: ends inside of its brackets; write quotes around all of it:
    'data.columns={prompt: question}'
    """
    for place, word in enumerate(words):
        if re.match(r"[+~]{0,2}[A-Za-z_][\w.@/:-]*=[\[{]", word) and _is_open(word):
            whole = word
            for more in words[place + 1 :]:
                whole += f" {more}"
                if not _is_open(whole):
                    from rlhf_lightning.console.redaction import redact_text

                    word, whole = redact_text(word), redact_text(whole)
                    raise ConfigError(f"{word} ends inside of its brackets; write quotes around all of it:\n'{whole}'")


def _is_open(text: str) -> bool:
    return text.count("{") > text.count("}") or text.count("[") > text.count("]")


def _loggers(word: str) -> list[str]:
    key, _, value = word.partition("=")
    if key != "logger":
        return [word]
    if value.lstrip().startswith("{"):
        return ["logger=none", f"+{word}"]
    return ["logger=none"] if value.lower() in ("false", "null", "none", "[]") else [word]


def _readable(word: str) -> str:
    if empty := _EMPTY.fullmatch(word):
        raise ConfigError(
            f"{word}: there is no value. Is a shell variable unset? Leave it out, or write {empty[1]}=null for none"
        )
    match = _WORD.fullmatch(word)
    if match is None or _PLAIN.fullmatch(match[2]):
        return word
    key, value = match.groups()
    if value.startswith("~/"):
        value = os.path.expanduser(value)
    read = _read(key + value)
    if read == value or (read is not None and not _is_path(value)):
        return key + value
    if value[:1] == "[" and value[-1:] == "]" and not _is_path(value):
        listed = f"{key}[{','.join(_element(part.strip()) for part in value[1:-1].split(','))}]"
        return listed if _read(listed) is not None else word
    if value[:1] + value[-1:] in ("''", '""'):
        return word  # quotes that someone meant, and that Hydra explains
    quoted = f"{key}{_quoted(value)}"
    return quoted if _read(quoted) == value else word


def _element(part: str) -> str:
    return part if _PLAIN.fullmatch(part) or _read(f"x={part}") is not None else _quoted(os.path.expanduser(part))


def _quoted(text: str) -> str:
    r"""In single quotes, before which Hydra reads backslashes as escapes."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (r"\'" if m[2] else ""), text) + "'"


def _is_path(text: str) -> bool:
    try:
        return os.path.exists(text)
    except ValueError:  # NUL
        return False


def _read(word: str) -> object:
    """What Hydra makes of the value; None if it cannot read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(word)
        return override.value() if not override.is_sweep_override() else override
    except (HydraException, RecursionError):  # brackets beyond counting
        return None
