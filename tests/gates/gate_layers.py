"""Which part of the package may import which: the rules of the layer gate, as functions of source text."""

import ast

LAYERS = {
    "__init__": 0,
    "types": 0,
    "functional": 0,
    "errors": 0,
    "rules": 0,
    "signals": 0,
    "console": 0,
    "private_api": 0,
    "models": 1,
    "optim": 1,
    "checkpoint": 1,
    "data": 2,
    "rollout": 2,
    "scoring": 2,
    "modules": 3,
    "callbacks": 4,
    "evaluation": 4,
    "labelling": 4,
    "tasks": 5,
    "stages": 6,
    "config": 6,
    "cli": 6,
}
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
        if library in CONFIG_LIBRARIES and LAYERS[part] < 6 and module not in CONFIG_FILES:
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
        elif LAYERS[other] == LAYERS[part] == 2:
            faults.append(f"{module}:{line}: {part} and {other} are siblings")
    return faults
