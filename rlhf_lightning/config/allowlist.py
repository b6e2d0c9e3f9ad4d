"""What a config may name in ``_target_``. Default deny: every name is judged before anything is imported or called.

A config can come from someone else, and naming a callable in it means calling it. Two looks are taken. First every
name of the tree is compared with the list below, with no import. Then each name is resolved and the object found must
itself be defined where the list says, so that a module's own imports (``rlhf_lightning.data.os.system``) are no way
around it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_lightning.config.tree import walk
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rules.stages import Stage

TRUSTED_VARIABLE = "RLHF_LIGHTNING_TRUSTED_TARGETS"
# Arguments of our own classes that are import paths too.
IMPORT_PATH_KEYS = frozenset({"function"})

_OWN = "rlhf_lightning."
_DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
_NOT_COMPONENTS = (
    "cli", "config", "console", "rules", "stages", "signals", "errors", "models.memory", "models.templates",
    "checkpoint.folders", "checkpoint.places", "checkpoint.provenance", "checkpoint.codec", "checkpoint.swap",
    "scoring.isolation", "network", "rollout.server.process",
)  # fmt: skip


class _Rule(NamedTuple):
    name: re.Pattern[str]  # of the whole import path
    defined_in: tuple[str, ...]  # modules where the object itself may be defined
    functions: bool  # whether functions are allowed besides classes


def _rule(name: str, *defined_in: str, functions: bool = False) -> _Rule:
    return _Rule(re.compile(name), defined_in, functions)


RULES = (
    _rule(rf"rlhf_lightning\.(?!({'|'.join(_NOT_COMPONENTS)})\.).+", "rlhf_lightning", functions=True),
    _rule(r"torch\.optim\..+", "torch.optim"),
    _rule(r"torchao\.optim\.\w+", "torchao.optim"),
    _rule(r"bitsandbytes\.optim\.\w+", "bitsandbytes.optim"),
    _rule(r"lightning\.pytorch\.callbacks\..+", "lightning.pytorch.callbacks"),
    _rule(r"lightning\.pytorch\.loggers\..+", "lightning.pytorch.loggers"),
    _rule(r"lightning\.pytorch\.strategies\.(?!launchers\.).+", "lightning.pytorch.strategies"),
    _rule(r"lightning\.pytorch\.profilers\..+", "lightning.pytorch.profilers"),
    _rule(r"lightning\.pytorch\.plugins\..+", "lightning.pytorch.plugins", "lightning.fabric.plugins"),
    _rule(r"lightning(\.pytorch)?\.Trainer", "lightning.pytorch.trainer"),
    _rule(r"torchmetrics\..+", "torchmetrics"),
    _rule(r"transformers\.get_\w*schedule\w*", "transformers.optimization", functions=True),
    _rule(r"transformers\.(Adafactor|GenerationConfig)", "transformers.optimization", "transformers.generation"),
    _rule(r"transformers\.(GPT2|GPTNeoX|Llama|Qwen2|Qwen3)Config", "transformers.models"),
)


def trusted_prefixes(trusted: Sequence[str] = ()) -> tuple[str, ...]:
    """``trusted`` and the prefixes of the environment variable, checked to be import paths (``my_package.*``)."""
    from_environment = os.environ.get(TRUSTED_VARIABLE, "").replace(":", ",").split(",")
    prefixes = [str(p).strip().removesuffix(".*") for p in (*trusted, *from_environment) if str(p).strip()]
    for prefix in prefixes:
        if not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", prefix):
            raise ConfigError(f"trusted_targets: {prefix!r} is no import path; give a package such as my_package")
    return tuple(prefixes)


def targets(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, import path) that instantiating ``tree`` could call, at any depth, positional arguments included.

    In a whole config that includes the import paths in ``stages``.
    """
    if isinstance(tree, dict) and isinstance(tree.get("stages"), list) and "_target_" not in tree:
        yield from (("stages", entry) for entry in tree["stages"] if "." in str(entry))
    for entry in walk(tree):
        name = entry.path[-1] if entry.path else None
        function = name in IMPORT_PATH_KEYS and isinstance(entry.value, str) and _is_ours(entry.holder)
        if name == "_target_" or function:
            yield entry.key, entry.value


def _is_ours(node: Any) -> bool:
    return isinstance(node, Mapping) and str(node.get("_target_", "")).startswith(_OWN)


def check_names(tree: Any, trusted: Sequence[str] = ()) -> None:
    """Refuse names that are not on the list. Imports nothing.

    Raises:
        ConfigError: a name is not allowed; says which key holds it and how to allow it. Or an argument of a class of
            this library has no name, by which it is judged.
    """
    prefixes = trusted_prefixes(trusted)
    for entry in walk(tree):  # an import path or a switch would pass there unseen
        if entry.path[-1:] == ("_args_",) and entry.value and _is_ours(entry.holder):
            raise ConfigError(f"{entry.key}: give the arguments of classes of this library by their names")
    for key, name in targets(tree):
        if not isinstance(name, str) or not _DOTTED.fullmatch(name):
            raise ConfigError(f"{key}: {name!r} is no import path of the form package.module.name")
        if not _is_under(name, prefixes) and _find_rule(name) is None:
            root = name.split(".")[0]
            raise ConfigError(
                f"{key}: {name} is not on the list of classes a config may name.\n"
                f"If it is yours and you trust it, add trusted_targets=[{root}] to the command "
                f"or set {TRUSTED_VARIABLE}={root}."
            )


def check_objects(tree: Any, trusted: Sequence[str] = ()) -> None:
    """Import what :func:`check_names` let through and refuse objects that are defined elsewhere than their name says.

    Raises:
        ConfigError: the name does not exist, is no class or function, or is another module's object.
    """
    prefixes = trusted_prefixes(trusted)
    for key, name in targets(tree):
        found = resolve(key, name)
        if name in prefixes:
            continue
        if key == "stages" and isinstance(found, Stage) and callable(found.run):
            found = found.run  # where the record was made is not written in it
        rule = _find_rule(name)
        home = getattr(found, "__module__", None) or ""
        if rule is None or _is_under(name, prefixes):
            allowed = inspect.isroutine(found) or inspect.isclass(found)
            allowed = allowed and (_is_under(home, prefixes) or _is_under(f"{home}.{found.__name__}", prefixes))
        else:
            allowed = (inspect.isclass(found) or (rule.functions and inspect.isfunction(found))) and _is_under(
                home, rule.defined_in
            )
            # a module of ours may have imported what another keeps from configs
            allowed = allowed and not (home.startswith(_OWN) and _find_rule(f"{home}.{found.__name__}") is None)
        if not allowed:
            kind = f"defined in {home}" if home else f"a {type(found).__name__}"
            raise ConfigError(
                f"{key}: {name} is {kind} and not what a config may name; give the name it is defined under"
            )


def resolve(key: str, name: str) -> Any:
    """The object at an import path that has passed the list.

    Raises:
        ConfigError: there is none; ``key`` is named.
    """
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        at_root = error.name == module_name.split(".")[0]
        hint = "; install it, or put its folder on PYTHONPATH (PYTHONPATH=. for this one)" if at_root else ""
        raise ConfigError(f"{key}: cannot import {module_name}: {error}{hint}") from error
    except Exception as error:  # whatever the module does while it is imported
        raise ConfigError(
            f"{key}: importing {module_name} failed with {type(error).__name__}: {error}; HYDRA_FULL_ERROR=1 shows "
            "where"
        ) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, [n for n in dir(module) if not n.startswith("_")], n=1)
        hint = f"; did you mean {module_name}.{near[0]}?" if near else ""
        raise ConfigError(f"{key}: {module_name} has no {attribute}{hint}")
    return getattr(module, attribute)


def _find_rule(name: str) -> _Rule | None:
    return next((rule for rule in RULES if rule.name.fullmatch(name)), None)


def _is_under(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
