"""Passwords and tokens are not written down: neither in the saved config, nor in provenance, nor in messages."""

from __future__ import annotations

import os
import re
from typing import Any

_KEY = re.compile(
    r"(^|[_-])(secrets?|passwords?|passwd|credentials?|(api|access|private|secret)[_-]?keys?"
    r"|(api|auth|access|hf|hub|bearer)[_-]?tokens?)$|^token$|^authorization$"
)
_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|_KEY|APIKEY)$")
_IN_URL = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")  # https://user:password@host
_SHORTEST = 6  # a shorter secret is no secret, and would blank out parts of other words
HIDDEN = "***"


def is_secret(key: str) -> bool:
    """Whether the last part of a dotted key is called like a password or token."""
    return bool(_KEY.search(key.rpartition(".")[2].lower()))


def redact(tree: Any) -> Any:
    """A copy of ``tree`` without secrets: ``***`` stands for them.

    Secrets are the values of keys such as ``api_key`` or ``hub_token``, and of environment variables called like that,
    wherever they occur in a text; and the password in an address.

    >>> redact({"logger": {"api_key": "abcdef", "url": "https://abcdef@host", "pad_token": "<pad>"}})
    {'logger': {'api_key': '***', 'url': 'https://***@host', 'pad_token': '<pad>'}}
    """
    variables = [value for name, value in os.environ.items() if _VARIABLE.search(name.upper())]
    known = {text for text in [*_secrets(tree), *variables] if len(text) >= _SHORTEST}
    return _without(tree, sorted(known, key=len, reverse=True))


def _secrets(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        own = [text for name, value in tree.items() if is_secret(str(name)) for text in _texts(value)]
        return own + [text for value in tree.values() for text in _secrets(value)]
    return [text for value in tree for text in _secrets(value)] if isinstance(tree, (list, tuple)) else []


def _texts(value: Any) -> list[str]:
    """Text and numbers at any depth."""
    if isinstance(value, dict):
        return _texts(list(value.values()))
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    return [str(value)] if isinstance(value, (str, int)) and not isinstance(value, bool) else []


def _without(tree: Any, known: list[str]) -> Any:
    if isinstance(tree, dict):
        return {k: HIDDEN if v and is_secret(str(k)) else _without(v, known) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_without(value, known) for value in tree]
    if isinstance(tree, str):
        for text in known:
            tree = tree.replace(text, HIDDEN)
        return _IN_URL.sub(rf"\g<1>{HIDDEN}", tree)
    return tree
