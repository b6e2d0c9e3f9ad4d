"""What ``stage=NAME --help`` shows: the keys that people change first, each with its default, meaning and range.

All of it is read from where it stands: comments and values from the config files, ranges and meanings from the source.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from rlhf_lightning.config.locations import CONF_DIR, help_text
from rlhf_lightning.config.signatures import Kind, explained, signature

FIRST = "Change first: "  # begins the line of a stage's file that names the keys
PACKAGE = "# @package "  # begins a file that says where it goes
_WIDTH, _INDENT = 110, 6


def page(stage: str = "") -> str:
    """The help of a stage, or of the command where there is no such stage."""
    text = help_text(stage)
    before, _, named = text.partition(FIRST)
    if not named:
        return text
    lines = [before.rstrip(), "", "Change first (key=default):"]
    for key in named.replace("\n", " ").split(","):
        lines += _entry(key.strip(), stage)
    return "\n".join([*lines, "", f"All keys: rlhf-lightning --cfg job stage={stage}"]) + "\n"


def _entry(key: str, stage: str) -> list[str]:
    """The lines about one key."""
    found = _found(key, stage)
    if found is None:
        return [f"  {key}"]
    value, comment, target = found
    name = key.rpartition(".")[2]
    meaning = comment or (explained(target).get(name, "") if target else "")
    said = "; ".join(filter(None, (meaning, _range(target, name) if target else "")))
    indent = " " * _INDENT
    return [f"  {key}={value}", *textwrap.wrap(said, _WIDTH, initial_indent=indent, subsequent_indent=indent)]


def _found(key: str, stage: str) -> tuple[str, str, str] | None:
    """Value, comment and the target that takes it, from the first file in which the key stands.

    The algorithm has the last word about the value.
    """
    first = None
    for package, file in (*_files(stage), ("", f"stage/{key.partition('.')[0]}")):  # a chain has those of its stages
        path = key.split(".")
        inside = package.split(".") if package else []
        if path[: len(inside)] == inside and (found := _at(file, tuple(path[len(inside) :]))) is not None:
            if file.startswith("algorithm/") and first:
                return found[0], *first[1:]
            first = first or found
    return first


def _files(stage: str) -> Iterator[tuple[str, str]]:
    """Package and name of the files that a stage is composed of: its own first, then those it names, then the rest."""
    yield "", f"stage/{stage}"
    yield "", "base"
    for file in (f"stage/{stage}", "train"):
        for entry in _tree(file)[0].get("defaults", ()):
            for group, option in entry.items() if isinstance(entry, dict) else ():
                name, _, package = group.removeprefix("override ").removeprefix("optional ").lstrip("/").partition("@")
                if isinstance(option, str):
                    file_of = f"{name}/{option}"
                    first = (_tree(file_of)[1] or [""])[0]
                    own = first.removeprefix(PACKAGE).strip() if first.startswith(PACKAGE) else name
                    yield package or own.replace("_global_", ""), file_of


def _at(file: str, path: tuple[str, ...]) -> tuple[str, str, str] | None:
    tree, lines = _tree(file)
    node, target = yaml.compose("\n".join(lines)) if lines else None, ""
    for number, name in enumerate(path):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        target = next((value.value for key, value in pairs if key.value == "_target_"), "")
        pair = next(((key, value) for key, value in pairs if key.value == name), None)
        if pair is None:
            return None
        node = pair[1]
        if number == len(path) - 1:
            _, _, comment = lines[pair[0].start_mark.line].partition(" # ")
            value: Any = tree
            for part in path:
                value = value[part]
            return _written(value), comment.removeprefix("not the default: ").strip(), target
    return None


@cache
def _tree(file: str) -> tuple[dict[str, Any], list[str]]:
    path = CONF_DIR / f"{file}.yaml"
    if not path.is_file():
        return {}, []
    text = path.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    return (tree if isinstance(tree, dict) else {}), text.splitlines()


def _written(value: Any) -> str:
    """A value as one types it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def _range(target: str, name: str) -> str:
    """Which values a target takes for an argument, as far as its source says it."""
    taken = signature(target)
    if taken is None or name not in taken.parameters:
        return ""
    bounds = [one.bounds for one in taken.ranges if one.parameter == name]
    words = {"above": "above", "at_least": "at least", "below": "below", "at_most": "at most"}
    found = [f"{words[key]} {bound}" for one in bounds for key, bound in one.items() if key in words]
    kinds: tuple[Kind, ...] = taken.parameters[name].kinds() or ()
    choices = [str(choice) for kind in kinds for choice in kind.choices]
    of = "a list of " if any(kind.name == "list" for kind in kinds) else "one of "
    return " and ".join(found) or (of + ", ".join(choices) if choices else "")
