"""Passwords and tokens are not written down: neither in the saved config, nor in provenance, nor in messages."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

_KEY = re.compile(
    r"(^|[_-])(secrets?|passwords?|passwd|credentials?|(api|access|private|secret)[_-]?keys?"
    r"|(api|auth|access|hf|hub|bearer)[_-]?tokens?)$|^token$|^authorization$"
)
_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|_KEY|APIKEY)$")
_IN_URL = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")  # https://user:password@host
_SHORTEST = 6  # a shorter secret is no secret, and would blank out parts of other words
HIDDEN = "***"
_remembered: set[tuple[str, str]] = set()


def remember(found: Iterable[Sequence[str]]) -> None:
    """Hide these too from now on, in this process: what ``oc.env`` gave, and secrets of the command line.

    Args:
        found: pairs of the last name of a key and its value, for example those another process knows, see `known`. The
            value is hidden under that name, and if it has 6 characters wherever it occurs.
    """
    _remembered.update((str(name), str(value)) for name, value in found)


def known() -> list[tuple[str, str]]:
    """What was remembered, for the `remember` of a process that this one starts."""
    return sorted(_remembered)


def redact_text(text: str) -> str:
    """``text`` without known secrets and without passwords in addresses.

    Known are the values of environment variables called like secrets, and what was remembered: the values of ``oc.env``
    and those of keys such as ``api_key``. Their spellings in addresses, JSON and quoted texts of Python are known too.

    >>> redact_text("cannot reach https://me:hunter22@host")
    'cannot reach https://me:***@host'
    """
    return str(_without(text, _spellings([])))


def is_secret(key: str) -> bool:
    """Whether the last part of a dotted key is called like a password or token."""
    return bool(_KEY.search(key.rpartition(".")[2].lower()))


def redact(tree: Any) -> Any:
    """A copy of ``tree`` without secrets: ``***`` stands for them.

    Secrets are the values of keys such as ``api_key`` or ``hub_token``, of environment variables called like that, and
    what was remembered, wherever they occur in a text; and the password in an address.

    >>> redact({"logger": {"api_key": "abcdef", "url": "https://abcdef@host", "pad_token": "<pad>"}})
    {'logger': {'api_key': '***', 'url': 'https://***@host', 'pad_token': '<pad>'}}
    """
    return _without(tree, _spellings(secrets(tree)))


def _spellings(more: list[str]) -> list[str]:
    """All secrets as they may stand in a text, longest first."""
    variables = [value for name, value in os.environ.items() if _VARIABLE.search(name.upper())]
    found = {text for text in (*more, *variables, *(value for _, value in _remembered)) if len(text) >= _SHORTEST}
    found |= {line for text in found if "\n" in text for line in text.splitlines() if len(line) >= _SHORTEST}
    for text in list(found):
        found |= {repr(text)[1:-1], json.dumps(text)[1:-1], quote(text), quote(text, safe="")}
    return sorted(found, key=len, reverse=True)


def secrets(tree: Any) -> list[str]:
    """The values of all keys of ``tree`` that are called like passwords or tokens."""
    if isinstance(tree, dict):
        own = [text for name, value in tree.items() if is_secret(str(name)) for text in _texts(value)]
        return own + [text for value in tree.values() for text in secrets(value)]
    return [text for value in tree for text in secrets(value)] if isinstance(tree, (list, tuple)) else []


def _texts(value: Any) -> list[str]:
    """Text and numbers at any depth."""
    if isinstance(value, dict):
        return _texts(list(value.values()))
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    return [str(value)] if isinstance(value, (str, int)) and not isinstance(value, bool) else []


def _without(tree: Any, known: list[str]) -> Any:
    if isinstance(tree, dict):
        hidden = {k for k, v in tree.items() if v and (is_secret(str(k)) or (str(k), str(v)) in _remembered)}
        return {_without(k, known): HIDDEN if k in hidden else _without(v, known) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_without(value, known) for value in tree]
    if isinstance(tree, str):
        for text in known:
            tree = tree.replace(text, HIDDEN)
        return _IN_URL.sub(rf"\g<1>{HIDDEN}", tree)
    return tree
