"""How large a config may become: what a file holds with its aliases, what interpolations make of it, and the whole.

A few lines of YAML can stand for more values than memory holds, by aliases, merge keys or interpolations. What is too
large is refused while it is counted, before any of it is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from rlhf_lightning.config.signatures import is_number, signature
from rlhf_lightning.config.tree import walk
from rlhf_lightning.errors import ConfigError

MOST_VALUES = 10_000  # of a resolved config
MOST_IN_FILE = 2 * MOST_VALUES  # keys and values, each alias counted with all it stands for
LARGEST_FILE = 1_000_000  # bytes
DEEPEST = 100  # containers in each other
MOST_RESOLVED = 2_000  # interpolations, each as often as another one leads to it
DEEPEST_CHAIN = 30  # interpolations that lead to each other
LONGEST = 100_000  # characters that interpolations put together
LONGEST_EXPRESSION = 2_000  # characters with an interpolation in them; reading them takes 0.1 ms each
DEEPEST_EXPRESSION = 30  # brackets in each other, in such a text or on the command line
LOADING = 100  # counted besides the keys and values, each time that a file is asked for
MOST_LOADED = 50_000  # keys and values of all files that a defaults list leads to, each as often as it is asked for
LARGEST = 1e300  # number
_OPEN, _CLOSED = "[{(", "]})"


class Budget:
    """What the interpolations of one config may cost: 1 each, and 1 for each 100 characters they make."""

    def __init__(self) -> None:
        self.left = MOST_RESOLVED
        self.depth = 0

    @contextmanager
    def one_more(self, key: str) -> Iterator[None]:
        """Around the resolution of one interpolation, which may lead to others.

        Raises:
            ConfigError: too many, or too many that lead to each other; names ``key``.
        """
        self.depth += 1
        try:
            if self.depth > DEEPEST_CHAIN:
                raise ConfigError(f"{key}: interpolations lead to each other more than {DEEPEST_CHAIN} times")
            self.spend(key, 1)
            yield
        finally:
            self.depth -= 1

    def spend(self, key: str, cost: int) -> None:
        """Raises ConfigError, with ``key``, where no more than ``cost`` is left."""
        self.left -= cost
        if self.left < 0:
            raise ConfigError(f"{key}: more than {MOST_RESOLVED} interpolations are followed in this config")


def check_text(text: str, where: str) -> int:
    """Count the keys and values of a YAML text, aliases and merge keys with all they stand for.

    Args:
        text: may be what YAML cannot read, which is for its reader to say.
        where: the name of the file, or the key that holds the text.

    Returns:
        how many there are, at most `MOST_IN_FILE`.

    Raises:
        ConfigError: too large, too deep, or an alias inside of what it stands for; names ``where`` and the line.
    """
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"{where}: is larger than {LARGEST_FILE} bytes, which no config is")
    open_sizes: list[int] = [0]
    open_anchors: list[str | None] = [None]
    anchors: dict[str, int] = {}
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            line = f"{where}, line {event.start_mark.line + 1}"
            size = 0
            if isinstance(event, yaml.AliasEvent):
                if event.anchor in open_anchors:
                    raise ConfigError(f"{line}: the alias *{event.anchor} is inside of what it stands for")
                size = anchors.get(event.anchor, 1)
            elif isinstance(event, yaml.ScalarEvent):
                size = 1
                check_expression(event.value, line)
                anchors |= {event.anchor: 1} if event.anchor else {}
            elif isinstance(event, yaml.CollectionStartEvent):
                open_sizes.append(1)
                open_anchors.append(event.anchor)
            elif isinstance(event, yaml.CollectionEndEvent):
                size, anchor = open_sizes.pop(), open_anchors.pop()
                anchors |= {anchor: size} if anchor else {}
            open_sizes[-1] += size
            if len(open_sizes) > DEEPEST:
                raise ConfigError(f"{line}: more than {DEEPEST} lists and mappings in each other")
            if open_sizes[-1] > MOST_IN_FILE:
                raise ConfigError(f"{line}: with its aliases this stands for more than {MOST_IN_FILE} keys and values")
    except yaml.YAMLError:
        pass
    return open_sizes[0]


def check_expression(text: str, where: str) -> None:
    """Refuse a text with interpolations that takes long to read.

    Raises:
        ConfigError: it is too long, or too many brackets are in each other; names ``where``.
    """
    if "${" not in text:
        return
    if len(text) > LONGEST_EXPRESSION:
        raise ConfigError(f"{where}: a text with interpolations may have {LONGEST_EXPRESSION} characters")
    check_brackets(text, where)


def check_brackets(text: str, where: str) -> None:
    """Raises ConfigError, with ``where``, if more brackets of ``text`` are in each other than a config needs."""
    depth = 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSED)
        if depth > DEEPEST_EXPRESSION:
            raise ConfigError(f"{where}: more than {DEEPEST_EXPRESSION} brackets in each other")


def check_numbers(tree: Any) -> None:
    """Refuse numbers of a resolved config that are none, or that no machine calculates with.

    An infinite number passes where its range allows it, and where nothing is known about the class it is for.

    Raises:
        ConfigError: names the key.
    """
    for entry in walk(tree):
        number: Any = entry.value
        if not is_number(number) or abs(number) <= LARGEST:
            continue
        takes = signature(entry.target)
        ranged = takes is not None and any(limit.parameter == entry.path[-1] for limit in takes.ranges)
        foreign = bool(entry.target) and takes is None
        if isinstance(number, int) or math.isnan(number) or not (ranged or foreign):
            shown = "an integer of very many digits" if isinstance(number, int) else number
            raise ConfigError(f"{entry.key}={shown}: must be a finite number")
