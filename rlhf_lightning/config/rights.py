"""What a config file may do, and what only the command line may: write elsewhere, name addresses, read the environment.

A config can come from someone else. All of it that the user did not type, see `rlhf_lightning.config.typed`, is judged
here. What is not known to be read only is held to be written.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import yaml

from rlhf_lightning.config.locations import CONF_DIR
from rlhf_lightning.config.tree import at
from rlhf_lightning.config.typed import Key, Typed, leaves
from rlhf_lightning.console.redaction import redact_text, remember, secrets
from rlhf_lightning.errors import ConfigError

# Variables that tell about a job or a machine. Those of Slurm by name: SLURM_JWT is a token.
HARMLESS = frozenset(
    [
        "USER", "LOGNAME", "HOSTNAME", "TMPDIR", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WORLD_SIZE", "RANK",
        "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "SLURM_JOB_ID", "SLURM_JOB_NAME",
        "SLURM_JOB_PARTITION", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "SLURM_LOCALID",
        "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK",
        "SLURM_GPUS_ON_NODE", "SLURM_CLUSTER_NAME",
    ]
)  # fmt: skip
PLACES = frozenset(("HOME", "PWD", "SCRATCH"))  # no file may ask for them, and yet they are no secrets

OUTPUT_ROOT = "runs"  # ours, see conf/base.yaml; where a link of this name leads is the choice of whoever made it

_READ = frozenset(
    [
        "policy", "reference", "critic", "proxy", "reward", "rows", "human_ranks", "votes", "held_out", "train",
        "validation", "folders", "revision",
    ]
)  # fmt: skip
_TEXT = frozenset(("stop",))  # of answers; opened by nobody
_WRITTEN = re.compile(r"(^|_)(output|folder|dirpath|dir|directory|root)$")
_PART = frozenset(("sub_dir",))  # joined to a folder that is judged
_FILE = frozenset(("path", "file", "filename", "target", "destination"))  # where a class or function writes
_WRITES = (
    "lightning.pytorch.loggers.",
    "lightning.pytorch.profilers.",
    "lightning.pytorch.callbacks.",
    "rlhf_lightning.",
)
_PRETRAINED = "rlhf_lightning.models.loading.Pretrained"
_SCORING = "rlhf_lightning.scoring."  # classes that read folders
_CONNECTS = re.compile(
    r"(^|_)(host|hostname|addr|address|endpoint|url|uri|dsn|port|proxies|server|api_base|init_method|space_id|"
    r"cluster_environment)s?$"
)
_ADDRESS = re.compile(
    r"(?<=[\w+.-]):/{1,3}(?!/)\S|(?<=\w)::|^\s*(//|\\\\)|^\s*(?=[\w.-]*[A-Za-z.])[\w.-]+:\d{1,5}(?=/|\s*$)|\[[\da-fA-F:.]+\]:\d|"
    r"^[\w.-]+@[\w-]+(\.[\w-]+)*:"
)
_OUTSIDE = re.compile(r"\s*([/\\~]|[A-Za-z]:[/\\])|(^|.*[/\\])\s*\.\.\s*($|[/\\])", re.DOTALL)
_LOOKS_UP = re.compile(r"\$[A-Za-z_{(]|%[A-Za-z_]\w*%|\.__\w")  # what some classes expand, or str.format follows
_LOCAL_LOGGERS = ("TensorBoardLogger", "CSVLogger", "Logger")


def check(config: Mapping[str, Any], raw: Any, typed: Typed) -> None:
    """Judge every value of a resolved config that was not typed.

    Args:
        config: plain dicts and lists.
        raw: the same before it was resolved.
        typed: the command line it was composed with.

    Raises:
        ConfigError: the first value that a file may not set; names it and says what to type to allow it.
    """
    remember(("", text) for text in secrets(config))
    values = list(leaves(config))
    by_hand = {key for key, *_ in values if typed.has(key, at(raw, key))}
    typed_values = {_repeatable(key, value, target) for key, value, target in values if key in by_hand}
    places = check_places(config, raw, typed)
    places += [v for key, v, target in values if key in by_hand and _is_written(key, target)]
    judge = _Judge([Path(os.path.realpath(p)) for p in places if isinstance(p, (str, PurePath)) and str(p)], typed)
    for key, value, target in values:
        if value is None or key in by_hand or key in (("run_dir",), ("output_root",)):
            continue
        if _repeatable(key, value, target) not in typed_values and (fault := judge.fault(key, value, target)):
            raise refusal(config, key, value, fault)


def check_places(config: Mapping[str, Any], raw: Any, typed: Typed) -> list[Any]:
    """Judge ``output_root`` and ``run_dir``, which Hydra makes before anything else looks at a config; returns them.

    Raises:
        ConfigError: a file sets one of them to something that is not below the working directory.
    """
    places: list[Any] = []
    for name in ("output_root", "run_dir"):
        value = config.get(name)
        if value is None:
            continue
        if value == _shipped(name):  # `runs` may be a link to a larger disk
            places.append(value)
            continue
        by_hand = typed.has((name,), at(raw, (name,))) or (name == "run_dir" and typed.sets_run_dir())
        by_hand = by_hand or (name == "output_root" and value == OUTPUT_ROOT)
        if not by_hand and not any(_is_below(value, place, strictly=True) for place in (os.getcwd(), *places)):
            raise refusal(config, (name,), value, "may choose it below the working directory only, in no hidden folder")
        places.append(value)
    return places


@cache
def _shipped(name: str) -> Any:
    """The value of a key in our own ``base.yaml``."""
    return yaml.safe_load((CONF_DIR / "base.yaml").read_text(encoding="utf-8")).get(name)


def check_variable(key: Key, raw: Any, variable: str, typed: Typed) -> None:
    """Judge whether the node ``key`` may read a variable of the environment.

    Args:
        key: names from the root of the config; empty where the node is in no config.
        raw: its text, not resolved.
        variable: its name.
        typed: the command line.

    Raises:
        ConfigError: the node comes from a file and the variable is not `HARMLESS`.
    """
    if variable in HARMLESS or (key and typed.has(key, raw)):
        return
    name = _dotted(key) or "an interpolation"
    remedy = f", or add {_words(name, raw)} to the command if you trust it" if key else ""
    raise ConfigError(
        f"{name}={raw}: comes from a config file, which may not read the environment variable {variable}.\n"
        f"Remove it from the file{remedy}."
    )


class _Judge:
    def __init__(self, places: Sequence[Path], typed: Typed) -> None:
        self.places, self.typed = places, typed

    def fault(self, key: Key, value: Any, target: str) -> str:
        """Why a file may not set this value; empty where it may."""
        told = _text(value)
        names = _names(key)
        last = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", names[-1]).lower()
        if _CONNECTS.search(last) or (last == "num_nodes" and value != 1):
            return "may name no host, port, address or further node"
        if names[-1] == "_target_":
            return self._target(told)
        if last == "program" and value != "vllm":
            return "may start no program"
        if not isinstance(value, (str, bytes, PurePath)) or last in _TEXT:
            return ""
        if _ADDRESS.search(told):
            return "may name no address"
        if _is_read(names, target):
            return ""
        if _LOOKS_UP.search(told):
            return "may not contain a '$name' or an attribute to be looked up"
        if _is_written(key, target):
            below = any(_is_below(told, place) for place in self.places)
            return "" if below else "may write below run_dir and output_root only (in a file: ${run_dir}/NAME)"
        return "may not lead outside of run_dir and output_root" if _OUTSIDE.match(told) else ""

    def _target(self, name: str) -> str:
        module, _, last = name.rpartition(".")
        if f"{module}.".startswith("lightning.pytorch.loggers.") and last not in _LOCAL_LOGGERS:
            word = last.lower().removesuffix("logger")
            chosen = [o for o in self.typed.overrides if "logger" in o.partition("=")[0]]
            if not any(word in override.partition("=")[2].lower() for override in chosen):
                return "may name no logger that sends what it is told elsewhere"
        if f"{module}.".startswith("lightning.pytorch.plugins.environments."):
            return "may not say how processes find each other"
        return ""


def refusal(config: Mapping[str, Any], key: Key, value: Any, why: str) -> ConfigError:
    """The error for a value that a file may not set, with the words that allow it."""
    while key[-1].isdigit() and len(key) > 1:  # of a list only the whole can be typed
        key = key[:-1]
    told = redact_text(str(value))
    words = _words(_dotted(key), redact_text(str(at(config, key))) if isinstance(value, bytes) else at(config, key))
    return ConfigError(
        f"{_dotted(key)}={told[:300]}: set by a config file, which {why}.\n"
        f"Remove it from the file, or add {redact_text(words)} to the command if you trust it."
    )


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _repeatable(key: Key, value: Any, target: str) -> tuple[str, str, bool]:
    """What makes a value that a file repeats from the command line (``scorer.judge: ${judge}``) the same there."""
    return _names(key)[-1], _text(value), _is_written(key, target)


def _is_read(names: Key, target: str) -> bool:
    """Whether the key says what to read, which a file may take from anywhere on this machine."""
    last, outer = names[-1], names[-2:-1]
    return (
        last in _READ
        or outer == ("policies",)
        or names[:1] == ("data",)
        or names == ("resume",)
        or (last == "path" and (target == _PRETRAINED or outer == ("model",)))
        or (last == "folder" and target.startswith(_SCORING))
    )


def _is_written(key: Key, target: str) -> bool:
    names = _names(key)
    last = names[-1].lower()
    if last in _PART or _is_read(names, target):
        return False
    own = target.startswith(_WRITES) or names[:1] in (("logger",), ("callbacks",)) or "profiler" in names
    joined = last == "filename" and target.startswith(_WRITES[:3])  # to a folder that is judged
    return bool(_WRITTEN.search(last)) or (own and not joined and (last in _FILE or "_args_" in names))


def _is_below(value: Any, place: Any, strictly: bool = False) -> bool:
    """Whether a path leads into a folder, links followed; ``strictly``: not to itself, and into nothing hidden."""
    try:
        path, folder = Path(os.path.realpath(str(value))), Path(os.path.realpath(place))
    except (OSError, ValueError):
        return False
    if not path.is_relative_to(folder):
        return False
    parts = path.relative_to(folder).parts
    return not strictly or (bool(parts) and not any(part.startswith(".") for part in parts))


def _names(key: Key) -> Key:
    """Without the places in lists."""
    return tuple(name for name in key if not name.isdigit()) or key


def _dotted(key: Key) -> str:
    return ".".join(key)


def _words(name: str, value: Any) -> str:
    """``name=value`` as one word of a shell, in Hydra's grammar."""
    return shlex.quote(f"{name}={_literal(value)}")


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_literal(item)}' for name, item in value.items())}}}"
    text = str(value)
    if value is None or not isinstance(value, str) or re.fullmatch(r"[\w/.+-]*[\w/+-]", text):
        return "null" if value is None else text
    quoted = text.replace('"', '\\"')
    return f'"{quoted}"'
