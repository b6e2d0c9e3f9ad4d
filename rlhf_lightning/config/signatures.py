"""What the classes and functions of a config take, read from their source without importing anything.

Importing PPO means importing torch, which takes seconds; a misspelt key should be answered at once. So names, types,
defaults and ranges (calls of `rlhf_lightning.rules.ranges.require`) are taken from the syntax tree of the module.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lightning.errors import ConfigError

_ROOTS = ("rlhf_lightning", "lightning", "torch")
RESERVED = frozenset(("_target_", "_partial_", "_args_", "_recursive_", "_convert_"))
"""Keys of a node that are Hydra's own."""

WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null",
    "list": "a list such as [a, b]", "dict": "a mapping such as {a: 1}", "object": "a part with a _target_",
}  # fmt: skip
"""How the kinds that a config can write are called in messages."""

_CONTAINERS = dict.fromkeys(("Sequence", "list", "tuple", "Iterable"), "list") | {"Mapping": "dict", "dict": "dict"}
_NAMED = {name: name for name in ("int", "float", "bool", "str", "list", "dict")} | {"Path": "str", "Tensor": "object"}


class Kind(NamedTuple):
    """One alternative of an annotation."""

    name: str  # int, float, bool, str, None, list, dict, choice or object
    choices: tuple[Any, ...] = ()  # of a Literal, or of a list of such

    def fits(self, value: Any) -> bool:
        """Whether a value of a config is of this kind; a node with a target is no plain value."""
        if self.name == "choice":
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if self.name == "object":
            return isinstance(value, dict)
        if self.name in ("float", "int"):
            return is_number(value) and (self.name == "float" or isinstance(value, int))
        if self.name == "list" and self.choices:
            return isinstance(value, list) and all(item in self.choices for item in value)
        if isinstance(value, dict) and "_target_" in value:
            return self.name in ("list", "dict")
        return type(value).__name__ == ("NoneType" if self.name == "None" else self.name)


class Parameter(NamedTuple):
    """One argument."""

    default: Any  # `...` where there is none, or none that can be read
    annotation: ast.expr | None
    module: _Module

    def kinds(self) -> tuple[Kind, ...] | None:
        """What may be given; None where that is anything. Only looked up when asked for: names lead to other files."""
        found = [] if self.annotation is None else list(_alternatives(self.annotation, self.module))
        return None if not found or None in found else tuple(kind for kind in found if kind is not None)


class Range(NamedTuple):
    """One call of `require`: for which argument, and its keywords."""

    parameter: str
    bounds: dict[str, Any]


class Signature(NamedTuple):
    """What a target takes."""

    parameters: dict[str, Parameter]
    is_open: bool  # takes `**`, or its constructor is not known
    ranges: tuple[Range, ...]


class _Module(NamedTuple):
    name: str
    is_package: bool
    names: dict[str, ast.stmt]  # what is defined or imported at the top level


def is_number(value: Any) -> bool:
    """Whether it is an int or a float; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@functools.cache
def signature(target: str) -> Signature | None:
    """What ``target``, an import path, takes; None where its source is not looked at or cannot be found."""
    return _signature(target) if target.split(".")[0] in _ROOTS else None


def signature_anywhere(target: str) -> Signature | None:
    """The same for targets of any package, those of the user too, which may change while a notebook is open."""
    return signature(target) if target.split(".")[0] in _ROOTS else _signature(target)


def _signature(target: str) -> Signature | None:
    found = _find(target)
    module, node = found or (None, None)
    if module is not None and isinstance(node, ast.FunctionDef):
        return Signature(_arguments(module, node), node.args.kwarg is not None, tuple(_ranges(node)))
    return _of_class(module, node) if module is not None and isinstance(node, ast.ClassDef) else None


def explained(target: str) -> dict[str, str]:
    """What the docstring of a target, or of a class it is made from, says of each argument: the first sentence."""
    module, node = (_find(target) if target.split(".")[0] == _ROOTS[0] else None) or (None, None)
    if module is None or not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return {}
    bases = _bases(module, node) if isinstance(node, ast.ClassDef) else []
    inherited = {name: text for home, one in bases for name, text in explained(f"{home.name}.{one.name}").items()}
    text = (ast.get_docstring(node) or "").partition("Args")[2]
    text = re.split(r"^(?:Raises|Returns|Attributes|Source):", text, flags=re.MULTILINE)[0]
    parts = re.findall(r"^ {4}(\w+): (.+(?:\n {8,}.+)*)", text, flags=re.MULTILINE)
    own = {name: re.split(r"(?<=[.;]) ", " ".join(said.split()))[0].rstrip(".;") for name, said in parts}
    return inherited | own


def _of_class(module: _Module, node: ast.ClassDef) -> Signature:
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    inherited = [signature_anywhere(f"{home.name}.{one.name}") for home, one in _bases(module, node)]
    ranges = [r for one in inherited if one is not None for r in one.ranges]
    if "__init__" in methods:
        arguments = _arguments(module, methods["__init__"])
        arguments.pop(next(iter(arguments), ""), None)  # self
        ranges = [r for r in ranges if r.parameter in arguments]
        is_open = methods["__init__"].args.kwarg is not None
        return Signature(arguments, is_open, (*ranges, *_ranges(methods["__init__"])))
    fields = {
        item.target.id: Parameter(_literal(item.value), item.annotation, module)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        before = {name: p for one in inherited if one is not None for name, p in one.parameters.items()}
        own = _ranges(methods["__post_init__"]) if "__post_init__" in methods else ()
        return Signature({**before, **fields}, False, (*ranges, *own))
    return next((one for one in inherited if one is not None), Signature({}, True, ()))


def _bases(module: _Module, node: ast.ClassDef) -> list[tuple[_Module, ast.ClassDef]]:
    """Base classes of this library, but none whose name is bound again (``class Adam(Adam)``); others are not read."""
    found = []
    for name in (ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases):
        named = module.names.get(name)
        ours = not isinstance(named, ast.ImportFrom) or (named.module or "").startswith(_ROOTS[0])
        match _lookup(module, name) if ours else None:
            case (home, ast.ClassDef() as base) if home.name != module.name or base.lineno < node.lineno:
                found.append((home, base))
    return found


def _arguments(module: _Module, function: ast.FunctionDef) -> dict[str, Parameter]:
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return {argument.arg: Parameter(_literal(value), argument.annotation, module) for argument, value in pairs}


def _ranges(function: ast.FunctionDef) -> Iterator[Range]:
    """Calls ``require("name", name, above=0)`` that are made in any case, on arguments or fields as they are."""
    for statement in function.body:
        match statement:
            case ast.Expr(ast.Call(func=ast.Name(id="require"), args=[_, given, *_], keywords=bounds)):
                name = {ast.Name: "id", ast.Attribute: "attr"}.get(type(given), "")
                yield Range(getattr(given, name, ""), {k.arg: _literal(k.value) for k in bounds if k.arg is not None})


def _literal(node: ast.expr | None) -> Any:
    try:
        return ... if node is None else ast.literal_eval(node)
    except (ValueError, TypeError):
        return ...


# ------------------------------------------------------------------------------------------------------- annotations


def _alternatives(node: ast.expr, module: _Module) -> Iterator[Kind | None]:
    """Each alternative of a union; None for one that any value may fit."""
    match node:
        case ast.BinOp(left=left, right=right):
            yield from _alternatives(left, module)
            yield from _alternatives(right, module)
        case ast.Constant(value=str(text)):
            yield from _alternatives(ast.parse(text, mode="eval").body, module)
        case ast.Constant(value=value):
            yield Kind("None") if value is None else None
        case ast.Subscript(value=outer, slice=inner):
            name = ast.unparse(outer).split(".")[-1]
            inside = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if name == "Literal":
                yield Kind("choice", tuple(ast.literal_eval(item) for item in inside))
            elif ast.unparse(inner).startswith("Literal[") and _CONTAINERS.get(name) == "list":
                yield from (Kind("list", of.choices) for of in _alternatives(inner, module) if of)
            elif name in ("Union", "Optional"):
                for item in inside:
                    yield from _alternatives(item, module)
                yield from [Kind("None")] * (name == "Optional")
            else:
                yield Kind(_CONTAINERS[name]) if name in _CONTAINERS else None
        case ast.Name(id=name) if name in _NAMED:
            yield Kind(_NAMED[name])
        case ast.Name(id=name):
            match _lookup(module, name):
                case (home, ast.Assign(value=alias) | ast.AnnAssign(value=ast.expr() as alias)):
                    yield from _alternatives(alias, home)
                case (_, ast.ClassDef()):
                    yield Kind("object")
                case _:
                    yield None
        case _:
            yield None


# ----------------------------------------------------------------------------------------------------------- sources


def _find(target: str) -> tuple[_Module, ast.stmt] | None:
    """Where ``package.module.name`` is defined; re-exports are followed."""
    module_name, _, name = target.rpartition(".")
    module = _module(module_name) if module_name else None
    return None if module is None else _lookup(module, name)


def _lookup(module: _Module, name: str) -> tuple[_Module, ast.stmt] | None:
    node = module.names.get(name)
    if not isinstance(node, ast.ImportFrom):
        return None if node is None else (module, node)
    base = module.name.split(".")
    base = base[: len(base) - node.level + module.is_package] if node.level else []
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    target = ".".join([*base, *([node.module] if node.module else []), original])
    known = target.split(".")[0] in (*_ROOTS, module.name.split(".")[0])
    return _find(target) if known else None


def _module(name: str) -> _Module | None:
    root, *rest = name.split(".")
    place = _place(root)
    if place is None:
        return None
    path = place.joinpath(*rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return _read(name, file, file.stat().st_mtime_ns) if file.is_file() else None


@functools.lru_cache(maxsize=1024)
def _read(name: str, file: Path, changed: int) -> _Module:
    """What a file defines; ``changed`` is the time of its last change, so that an edit is seen."""
    names: dict[str, ast.stmt] = {}
    try:
        with tokenize.open(file) as stream:
            tree = _parse(stream.read())
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{file}:{getattr(error, 'lineno', None) or 1}: cannot be read as Python: {error}") from None
    for node in tree.body:
        for statement in node.body if isinstance(node, ast.If) else [node]:
            names |= dict.fromkeys(_bound(statement), statement)
    return _Module(name, file.name == "__init__.py", names)


def _parse(source: str) -> ast.Module:
    """The syntax tree without methods other than constructors, which halves the time."""
    parts = re.split(r"(?m)^(?=\S|    (?:@|def |async def ))", source)
    kept = (p for p in parts if not re.match(r"    (?:@|async |def (?!__init__|__post_init__))", p))
    try:
        return ast.parse("".join(kept))
    except SyntaxError:  # a class of methods only, or a text that looks like one
        return ast.parse(source)


def _place(root: str) -> Path | None:
    """The folder of a package or the file of a module, without importing it."""
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places and spec is not None and spec.has_location and spec.origin is not None:
        places = [spec.origin]
    return Path(places[0]) if places else None


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
