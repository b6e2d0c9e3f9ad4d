"""A config file lists the knobs of the class it names, with the class's defaults: the rule as functions of text."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import yaml

RESERVED = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}
# Words of annotations that YAML can write down; a None default of anything else is an object handed over in Python.
PLAIN = {
    "int",
    "float",
    "str",
    "bool",
    "None",
    "list",
    "tuple",
    "dict",
    "Sequence",
    "Mapping",
    "Literal",
    "Path",
    "Any",
}
DELIBERATE = "# not the default"
HANDED_OVER = re.compile(r"[#;] *given in Python: ([\w, ]+)")


def target_nodes(node: yaml.Node) -> Iterator[tuple[str, yaml.MappingNode]]:
    """(import path, mapping) of every node that names a target of this package."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "_target_" and str(value.value).startswith("rlhf_lightning."):
                yield value.value, node
            yield from target_nodes(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from target_nodes(item)


def config_faults(text: str, path: str) -> list[str]:
    """Keys that the target does not take, values that differ from its defaults, and knobs that are not listed.

    A knob may be missing where a comment in its node says ``# given in Python: name, name``. Such a comment names only
    what the class of that node has.
    A value may differ where it is an interpolation or ``???``, or where its line says ``# not the default`` and why.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    faults: list[str] = []
    nodes = list(target_nodes(root)) if root is not None else []
    comments = _handed_over(text, nodes)
    faults += [f"{path}:{line + 1}: names knobs of no class" for line in comments.pop(None, {})]
    for target, node in nodes:
        handed_over = {name for names in comments.get(id(node), {}).values() for name in names}
        module, _, name = target.rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        given = {key.value: (value, key.start_mark.line) for key, value in node.value if key.value not in RESERVED}
        where = f"{path}: {target}"
        faults += [f"{where} takes no {key}" for key in given if key not in parameters]
        knobs = [key for key, parameter in parameters.items() if _is_knob(parameter)]
        faults += [f"{where}: {key} is not listed" for key in knobs if key not in given and key not in handed_over]
        faults += [f"{where} has no {key}, which a comment names" for key in handed_over if key not in parameters]
        faults += [f"{where}: {key} is listed, and a comment says it is not" for key in handed_over if key in given]
        for key, (value, line) in given.items():
            if key in parameters and DELIBERATE not in text.splitlines()[line]:
                faults += [f"{where}: {key} {fault}" for fault in _difference(value, parameters[key].default)]
    return faults


def _handed_over(text: str, nodes: list[tuple[str, yaml.MappingNode]]) -> dict[int | None, dict[int, list[str]]]:
    """Names in comments by the id of the node they belong to, and there by line; None where they belong to none.

    A comment behind a key belongs to the node of that key, one on a line of its own to the node whose keys begin at the
    same column before it.
    """
    found: dict[int | None, dict[int, list[str]]] = {}
    for number, line in enumerate(text.splitlines()):
        names = [name.strip() for part in HANDED_OVER.findall(line) for name in part.split(",")]
        if not names:
            continue
        if line.lstrip().startswith("#"):
            column = len(line) - len(line.lstrip())
            around = [n for _, n in nodes if n.start_mark.column == column and n.start_mark.line < number]
            around = [n for n in around if number <= n.end_mark.line]
        else:
            around = [n for _, n in nodes if number in {key.start_mark.line for key, _ in n.value}]
        found.setdefault(id(around[-1]) if around else None, {})[number] = names
    return found


def _is_knob(parameter: inspect.Parameter) -> bool:
    if parameter.default is None:
        words = str(parameter.annotation).replace("typing.", "").replace("collections.abc.", "")
        for sign in "[]|,.'\"":
            words = words.replace(sign, " ")
        return set(words.split()) <= PLAIN
    return isinstance(parameter.default, (bool, int, float, str, list, tuple))


def _difference(value: yaml.Node, default: Any) -> list[str]:
    if default is inspect.Parameter.empty or not isinstance(value, (yaml.ScalarNode, yaml.SequenceNode)):
        return []
    loader = yaml.SafeLoader("")
    written = loader.construct_object(value, deep=True)
    if isinstance(written, str) and ("${" in written or written == "???"):
        return []
    default = list(default) if isinstance(default, tuple) else default
    if isinstance(default, float) and isinstance(written, str):
        return [f"is the text {written!r}; YAML needs a point in the number, as in 1.0e-5"]
    same = written == default and isinstance(written, bool) == isinstance(default, bool)
    return [] if same else [f"is {written!r}, the default is {default!r}"]


def groups_of(text: str) -> dict[str, set[str]]:
    """Options of each group in the table ``| group | options | keys |`` of a page; what is in brackets is no option."""
    table = text.partition("| group | options | keys |\n")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table]
    return {row[0].strip("`"): set(re.sub(r"\(.*?\)", "", row[1]).replace(",", " ").split()) for row in rows}
