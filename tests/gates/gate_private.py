"""Private API of other libraries outside of `rlhf_lightning.private_api`: the rules of the gate.

An attribute with a leading underscore is our own if the file defines it, or a base of the class that reads it; whatever
else begins with an underscore belongs to somebody who may change it without notice.
"""

import ast
import sys
from collections.abc import Iterable, Mapping
from inspect import isfunction

ROOM = "rlhf_lightning/private_api/"
DOCUMENTED = {"_exit", "_replace", "_fields", "_asdict"}  # of os and of named tuples: public in spite of their names
Classes = Mapping[str, tuple[list[str], set[str]]]  # name of a class: names of its bases, its private members


def private(name: str) -> bool:
    """Whether a name begins with one underscore, or with two and does not end so."""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__")) and name not in DOCUMENTED


def classes_of(sources: Iterable[str]) -> Classes:
    """All classes of the package by name."""
    found = {}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                found[node.name] = (
                    [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases],
                    _members(node),
                )
    return found


def private_faults(source: str, path: str, classes: Classes) -> list[str]:
    """Uses of what is private, and of patches that replace what another library made."""
    tree = ast.parse(source)
    libraries, faults = _imported(tree), []
    own = _members(tree).union(*(_inherited(node.name, classes) for node in ast.walk(tree) if _is_class(node)))
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith("rlhf_lightning"):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            name = next(filter(private, parts), "")
        elif isinstance(node, ast.Import):
            name = next((part for alias in node.names for part in alias.name.split(".") if private(part)), "")
        elif isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
            name = ast.unparse(node)
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) in libraries
        ):
            name = f"{ast.unparse(node)} = .."
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            named = node.args[1] if len(node.args) > 1 else None
            name = str(named.value) if isinstance(named, ast.Constant) and private(str(named.value)) else ""
        if name and name not in own:
            faults.append(f"{path}:{node.lineno}: {name} is private or not ours to replace; see {ROOM}")
    for number, line in enumerate(source.splitlines(), 1):
        if "type: ignore" in line and "method-assign" in line:
            faults.append(f"{path}:{number}: a method is replaced at run time; see {ROOM}")
    return faults


def overridden(cls: type) -> list[str]:
    """Private methods of other libraries' classes that a class of the package replaces."""
    others = [base for base in cls.__mro__[1:] if not base.__module__.startswith("rlhf_lightning")]
    return [n for n in vars(cls) if private(n) and isfunction(vars(cls)[n]) and any(n in vars(base) for base in others)]


def _is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def _members(tree: ast.AST) -> set[str]:
    """Private names that are defined here: functions, classes, variables, and attributes given to ``self``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return {name for name in found if private(name)}


def _inherited(name: str, classes: Classes) -> set[str]:
    bases, members = classes.get(name, ([], set()))
    return members.union(*(_inherited(base, classes) for base in bases if base != name))


def _imported(tree: ast.AST) -> set[str]:
    """Names bound to what other libraries have made."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            for alias in node.names:
                root = (module or alias.name).split(".")[0]
                if root not in sys.stdlib_module_names and root != "rlhf_lightning" and not getattr(node, "level", 0):
                    found.add(alias.asname or alias.name)
    return found
