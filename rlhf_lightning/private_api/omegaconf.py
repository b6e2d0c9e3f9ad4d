"""What OmegaConf, and the PyYAML it reads with, do not promise to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import omegaconf.grammar_parser
import yaml
from omegaconf import Container, DictConfig, ListConfig

_patched: Any = Container
_resolve: Any = Container._resolve_interpolation_from_parse_tree
_parse = lru_cache(maxsize=2_000)(omegaconf.grammar_parser.parse)
Resolve = Callable[[], Any]


def resolve_through(watch: Callable[[Any, Any, Resolve], Any] | None) -> None:
    """Resolve every interpolation by ``watch(node, key, resolve)``, which returns what ``resolve()`` does; None stops.

    Relies on the one method through which a container resolves. OmegaConf has no limits and no hook.
    """
    if watch is None:
        _patched._resolve_interpolation_from_parse_tree = _resolve
        return

    def watched(
        self: Any, parent: Any, value: Any, key: Any, parse_tree: Any, throw_on_resolution_failure: bool, memo: Any
    ) -> Any:
        given = (self, parent, value, key, parse_tree, throw_on_resolution_failure, memo)
        return watch(value, key, lambda: _resolve(*given))

    _patched._resolve_interpolation_from_parse_tree = watched


def content_of(node: Any) -> Any:
    """What a leaf holds, an interpolation as its text; public access resolves it."""
    return node._value()


def raw_items(tree: Any) -> Iterable[tuple[Any, Any]]:
    """Names and nodes of a `DictConfig`, interpolations and missing values as they stand; nothing of any other node.

    Relies on ``items_ex``; the public ``items`` resolves, and raises where something is missing.
    """
    return tree.items_ex(resolve=False) if isinstance(tree, DictConfig) and not tree._is_none() else ()


def root_of(node: Any) -> Any:
    """The whole config that a node is part of; a node has no public way up."""
    return node._get_root()


def place_of(node: Any) -> tuple[str, ...]:
    """The names that lead from the root to a node; empty for one that no config holds, whatever it is called.

    Relies on the parent and the key that a node knows; publicly only a container tells full keys.
    """
    names: list[str] = []
    while (parent := node._get_parent()) is not None:
        name = node._key()
        if name is None or not isinstance(parent, (DictConfig, ListConfig)) or parent._get_node(name) is not node:
            return ()
        names.insert(0, str(name))
        node = parent
    return tuple(names)


@contextmanager
def parsed_once() -> Iterator[None]:
    """Inside, each text with an interpolation is parsed once; its tree is only read, and a config holds most of them
    several times.

    Relies on the name by which two modules call the parser, which else takes a fifth of the time of composing.
    """
    modules: list[Any] = [omegaconf._utils, omegaconf.base]
    before = modules[0].parse
    for module in modules:
        module.parse = _parse
    try:
        yield
    finally:
        for module in modules:
            module.parse = before


@contextmanager
def read_by_libyaml() -> Iterator[None]:
    """Inside, YAML is read by PyYAML's parser in C where that is installed, which is many times faster.

    OmegaConf names ``yaml.SafeLoader``, and takes no other.
    """
    before = yaml.SafeLoader
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", before)
    try:
        yield
    finally:
        yaml.SafeLoader = before
