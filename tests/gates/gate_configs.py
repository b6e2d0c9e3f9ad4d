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
HANDED_OVER = re.compile(r"# (?:given in Python|left at their defaults): (.*)")


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

    A knob may be missing where a comment of the file says ``# given in Python: name, name``, or, rarely touched,
    ``# left at their defaults: name, name``.
    A value may differ where it is an interpolation or ``???``, or where its line says ``# not the default`` and why.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    faults: list[str] = []
    handed_over = {name.strip() for names in HANDED_OVER.findall(text) for name in names.split(",")}
    for target, node in target_nodes(root) if root is not None else ():
        module, _, name = target.rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        given = {key.value: (value, key.start_mark.line) for key, value in node.value if key.value not in RESERVED}
        where = f"{path}: {target}"
        faults += [f"{where} takes no {key}" for key in given if key not in parameters]
        knobs = [key for key, parameter in parameters.items() if _is_knob(parameter)]
        faults += [f"{where}: {key} is not listed" for key in knobs if key not in given and key not in handed_over]
        for key, (value, line) in given.items():
            if key in parameters and DELIBERATE not in text.splitlines()[line]:
                faults += [f"{where}: {key} {fault}" for fault in _difference(value, parameters[key].default)]
    return faults


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
