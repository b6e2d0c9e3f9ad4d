"""Which part of the package may import which: the rules of the layer gate, as functions of source text."""

import ast

ROOMS = (
    ("__init__", "types", "functional", "errors", "rules", "signals", "console", "private_api"),
    ("models", "optim", "checkpoint", "network"),
    ("training", "loggers"),
    ("data", "rollout", "scoring"),
    ("metrics",),
    ("modules",),
    ("callbacks", "evaluation", "labelling", "people"),
    ("tasks",),
    ("stages", "config", "cli"),
)
LAYERS = {room: layer for layer, rooms in enumerate(ROOMS) for room in rooms}
TOP = len(ROOMS) - 1
SIBLINGS = LAYERS["data"]  # rooms of this layer do not know each other
TORCH_ONLY = {"types", "functional"}  # usable in any notebook without the rest of the stack
NOT_FOR_TORCH_ONLY = {"lightning", "transformers", "torchmetrics", "hydra", "omegaconf", "tensorboard", "matplotlib"}
CONFIG_LIBRARIES = {"hydra", "omegaconf"}
CONFIG_FILES = {f"rlhf_lightning.private_api.{library}" for library in CONFIG_LIBRARIES}


def imported(source: str, package: str) -> list[tuple[int, str]]:
    """(line, absolute module name) of every import; ``package`` is where the source lives, for relative imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def layer_faults(source: str, module: str) -> list[str]:
    """Imports of ``module`` (for example ``rlhf_lightning.data.loader``) that go upwards or sideways."""
    part = module.split(".")[1] if "." in module else "__init__"
    if part not in LAYERS:
        return [f"{module}: the part {part!r} has no layer"]
    faults = []
    for line, name in imported(source, module.rpartition(".")[0]):
        root, *rest = name.split(".")
        library = rest[1] if rest[:1] == ["private_api"] and rest[1:] else root
        if library in CONFIG_LIBRARIES and LAYERS[part] < TOP and module not in CONFIG_FILES:
            faults.append(f"{module}:{line}: {library} belongs to the top layer only")
        if part in TORCH_ONLY and root in NOT_FOR_TORCH_ONLY:
            faults.append(f"{module}:{line}: {part} needs torch only, not {root}")
        other = rest[0] if root == "rlhf_lightning" and rest else part
        if other.startswith("__") or other == part:
            continue
        if other not in LAYERS:
            faults.append(f"{module}:{line}: the part {other!r} has no layer")
        elif part in ("types", "private_api"):
            faults.append(f"{module}:{line}: {part} imports nothing of ours")
        elif LAYERS[other] > LAYERS[part]:
            faults.append(f"{module}:{line}: layer {LAYERS[part]} imports {other} of layer {LAYERS[other]}")
        elif LAYERS[other] == LAYERS[part] == SIBLINGS:
            faults.append(f"{module}:{line}: {part} and {other} are siblings")
    return faults


def circles(sources: dict[str, str]) -> list[list[str]]:
    """Modules that import each other, in annotations and inside of functions as well.

    Args:
        sources: source text by absolute module name; a package by the name of its folder.

    Returns:
        names of each circle, sorted.
    """
    graph = {
        name: {other for _, found in imported(source, name.rpartition(".")[0]) if (other := _module(found, sources))}
        for name, source in sources.items()
    }
    reached = {name: _reachable(graph, name) for name in graph}
    found = {tuple(sorted(o for o in reached[name] if name in reached[o])) for name in graph if name in reached[name]}
    return sorted(list(names) for names in found if len(names) > 1)


def _module(name: str, sources: dict[str, str]) -> str | None:
    """The module of ours that an imported name belongs to."""
    while name and name not in sources:
        name = name.rpartition(".")[0]
    return name or None


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """What can be reached from a node in one step or more."""
    found: set[str] = set()
    left = [start]
    while left:
        fresh = graph[left.pop()] - found
        found |= fresh
        left += fresh
    return found
