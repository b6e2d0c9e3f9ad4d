"""Which values of a config the user typed, and which came from a file.

A value counts as typed if its key, or the dict or list around it, stands on the command line, or if the machine's own
file ``conf/local/default.yaml`` gives the same. A group option (``task=support``) is a file that was chosen: what
stands in it was not typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from rlhf_lightning.config import locations
from rlhf_lightning.config.tree import walk
from rlhf_lightning.console.redaction import is_secret, redact, remember, secrets

Key = tuple[str, ...]
_ELSEWHERE = ("hydra", "logger", "run_dir", "output_root", "resume", "overwrite", "trusted_targets", "objective")


class Typed:
    """Which values of a config come from the command line or the machine's own file.

    Args:
        overrides: the command line, those of Hydra itself included. Its secrets are remembered, so that no message
            repeats them.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        self.overrides = list(overrides)
        self.keys: set[Key] = set()
        self.lists: set[Key] = set()  # typed with all that is inside
        self.local = dict(_local())
        for override in overrides:
            name, equals, value = override.lstrip("+").partition("=")
            if override.startswith("~") or not equals or "@" in name or "/" in name:
                continue
            key = tuple(re.findall(r"[^.\[\]]+", name))
            if "{" in value.replace("${", ""):
                remember(("", text) for text in secrets(_parsed(override)) if "${" not in text)
            if value.lstrip().startswith("{"):
                self.keys |= {(*key, *path) for path, *_ in leaves(_parsed(override))}
            else:
                (self.lists if re.match(r"\s*(\[|\w+\()", value) else self.keys).add(key)
                if is_secret(key[-1]) and "${" not in value:
                    remember([(key[-1], value.strip("'\""))])

    def has(self, key: Key, raw: Any = ...) -> bool:
        """Whether the value at ``key`` was typed; ``raw`` is what the composed config holds there, not resolved."""
        if key in self.keys or any(key[: len(outer)] == outer for outer in self.lists):
            return True
        return key in self.local and raw is not ... and self.local[key] == raw

    def sets_run_dir(self) -> bool:
        """Whether the run's folder was named by what Hydra calls it."""
        return any(key[:2] in (("hydra", "run"), ("hydra", "sweep")) for key in self.keys)


def choices(overrides: Sequence[str]) -> dict[str, str | int | float | bool]:
    """What a command line chose of a run, flat and without secrets: not its folders, and nothing of Hydra or loggers.

    >>> choices(["algorithm=grpo", "+ppo.settings={group_size: 4}", "run_dir=x", "hydra.verbose=true"])
    {'algorithm': 'grpo', 'ppo.settings.group_size': 4}
    """
    found: dict[str, Any] = {}
    for override in overrides:
        name = override.lstrip("+").partition("=")[0]
        if not override.startswith("~") and re.split(r"[.@/]", name)[0] not in _ELSEWHERE:
            value = _parsed(override)
            inner = {".".join(path): leaf for path, leaf, _ in leaves(value)} if isinstance(value, Mapping) else None
            found |= {f"{name}.{path}": leaf for path, leaf in inner.items()} if inner else {name: value}
    kept = {name: value if isinstance(value, (str, int, float)) else str(value) for name, value in found.items()}
    return dict(redact(kept))


def leaves(tree: Any) -> Iterator[tuple[Key, Any, str]]:
    """(key, value, target of the innermost node around it) of every value, those in lists with the place as name."""
    for path, value, _, target in walk(tree):
        if path and not isinstance(value, (Mapping, list)):
            yield tuple(map(str, path)), value, target


def _parsed(override: str) -> Any:
    """The value of an override as Hydra reads it; nothing where it does not, which it says itself."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override).value()
    except HydraException:
        return {}


def _local() -> Iterator[tuple[Key, Any]]:
    """What the machine's own file gives, as it stands; not what it takes from other keys of the config."""
    path = locations.CONF_DIR / "local" / "default.yaml"
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    package = re.search(r"(?m)^#\s*@package\s+(\S+)", text)
    outer = ("local",) if package is None else () if package[1] == "_global_" else tuple(package[1].split("."))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for key, value, _ in leaves(yaml.load(text, Loader=loader)):
        if "${" not in re.sub(r"\$\{oc\.env:\w+\}", "", str(value)):
            yield (*outer, *key), value
