"""A part that is swapped for another one leaves no keys behind that the new one does not take.

A node of a config is put together from layers: files in the order of the defaults lists, then the command line. Where a
later layer names another ``_target_``, everything that the earlier ones gave to the part before would stay in the node,
and Hydra cannot remove a key that is null. Here it is removed, unless the new target takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rlhf_lightning.config.signatures import RESERVED, signature_anywhere
from rlhf_lightning.config.tree import at, walk
from rlhf_lightning.config.typed import Key, Typed

Layers = Callable[[], Sequence[Mapping[str, Any]]]


def drop_leftovers(cfg: DictConfig, layers: Layers, typed: Typed) -> None:
    """Remove from a composed config what swapped parts have left behind.

    Args:
        cfg: changed in place.
        layers: gives the files it was composed of as plain dicts, in their order; called only if there is something to
            be asked.
        typed: the command line.
    """
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    found = [(key, names) for key, node in _nodes(tree) if (names := _not_taken(node))]
    files = layers() if found else ()
    for key, names in found:
        given = _given_since_swap(key, str(at(tree, key)["_target_"]), files, typed)
        if given is None:
            continue
        node = OmegaConf.select(cfg, ".".join(key))
        for name in names:
            if name not in given and not typed.has((*key, name)):
                with open_dict(node):
                    del node[name]


def keep_typed_stage(cfg: DictConfig, files: Layers, typed: Typed) -> None:
    """Run what a typed stage runs, also where an experiment lists other stages: what is typed wins over a file.

    `pipeline` is for any chain, and leaves that to the experiment.

    Args:
        cfg: composed, with Hydra's own part; changed in place.
        files: gives those that the stage is made of as plain dicts, in their order; called only if it was typed.
        typed: the command line.
    """
    if cfg.hydra.runtime.choices.get("stage") == "pipeline" or typed.has(("stages",)) or not typed.has(("stage",)):
        return
    for stages in [file["stages"] for file in files() if "stages" in file][-1:]:
        cfg.stages = stages


def _nodes(tree: Any) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Every node that names a target; those in lists are left out, since a later layer replaces a list as a whole."""
    for path, value, *_ in walk({name: part for name, part in tree.items() if name != "hydra"}):
        target = value.get("_target_") if isinstance(value, dict) else None
        if isinstance(target, str) and "${" not in target and not any(isinstance(name, int) for name in path):
            yield path, value


def _not_taken(node: Mapping[str, Any]) -> list[str]:
    takes = signature_anywhere(node["_target_"])
    if takes is None or takes.is_open:
        return []
    return [name for name in node if name not in takes.parameters and name not in RESERVED]


def _given_since_swap(key: Key, target: str, files: Sequence[Mapping[str, Any]], typed: Typed) -> set[str] | None:
    """Keys that files gave to the target that stands there now; None where no other one stood there before."""
    given: set[str] = set()
    current, swapped = "", False
    for file in files:
        node = at(file, key)
        if not isinstance(node, Mapping):
            continue
        named = str(node.get("_target_", current))
        if current and named != current:
            given, swapped = set(), True
        current = named
        given |= {str(name) for name in node}
    if current and target != current and typed.has((*key, "_target_")):
        return set()
    return given if swapped and target == current else None
