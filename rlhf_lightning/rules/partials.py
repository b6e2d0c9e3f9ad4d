"""Functions whose arguments are bound by ``functools.partial``, as a node with ``_partial_: true`` makes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any


def unwrapped(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function inside nested partials, and all keywords bound to it.

    >>> unwrapped(partial(partial(print, sep="", end=""), end="!"))
    (<built-in function print>, {'sep': '', 'end': '!'})
    """
    bound: dict[str, Any] = {}
    while isinstance(function, partial):
        bound = {**function.keywords, **bound}
        function = function.func
    return function, bound


def called(function: Callable[..., Any]) -> str:
    """The name of a function or class for a message, without what is bound."""
    inner = unwrapped(function)[0]
    return getattr(inner, "__name__", type(inner).__name__)


def takes(function: Callable[..., Any]) -> frozenset[str]:
    """Names of the arguments of the function inside, bound or not; none where they cannot be known.

    >>> sorted(takes(partial(called, function=print)))
    ['function']
    """
    try:
        return frozenset(inspect.signature(unwrapped(function)[0]).parameters)
    except ValueError:  # some that are written in C
        return frozenset()
