"""Going through a config of plain dicts and lists. Imports nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Path = tuple[Any, ...]  # names of dicts, and places in lists as int


class Entry(NamedTuple):
    """Something that stands in a config."""

    path: Path
    value: Any
    holder: Any  # the dict or list it stands in; None of the whole
    target: str  # `_target_` of the innermost node around it, or nothing

    @property
    def key(self) -> str:
        """As messages write it."""
        return dotted(self.path)


def walk(tree: Any, path: Path = (), holder: Any = None, target: str = "") -> Iterator[Entry]:
    """Everything in a tree, itself first, outer things before inner ones.

    >>> [(entry.key, entry.target) for entry in walk({"a": [{"_target_": "x.Y", "b": 1}]})][2:]
    [('a[0]', ''), ('a[0]._target_', 'x.Y'), ('a[0].b', 'x.Y')]
    """
    yield Entry(path, tree, holder, target)
    if isinstance(tree, Mapping):
        target = str(tree.get("_target_", target))
        for name, value in tree.items():
            yield from walk(value, (*path, name), tree, target)
    elif isinstance(tree, (list, tuple)):
        for place, value in enumerate(tree):
            yield from walk(value, (*path, place), tree, target)


def at(tree: Any, path: Path) -> Any:
    """What stands at a path; `...` where nothing does."""
    for name in path:
        if isinstance(tree, Mapping) and name in tree:
            tree = tree[name]
        elif isinstance(tree, list) and str(name).isdigit() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return ...
    return tree


def dotted(path: Path) -> str:
    """``a.b[0]``.

    >>> dotted(("a", "b", 0, "c"))
    'a.b[0].c'
    """
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in path).removeprefix(".")
