"""Where the configuration files are. Imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]

CONF_DIR = next(d for d in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if d.is_dir())
"""The config tree: inside the package when installed from a wheel, beside it in a checkout or editable install."""


def help_text(stage: str = "", conf_dir: Path = CONF_DIR) -> str:
    """What ``--help`` shows: the block ``template: |`` of ``conf/hydra/help/rlhf_lightning.yaml``.

    Hydra reads the same file when it is asked for help; this function only saves importing Hydra for a page of text.

    Args:
        stage: the opening comment of its file is shown instead, if there is such a stage.
        conf_dir: the config tree.
    """
    file = conf_dir / "stage" / f"{stage}.yaml"
    if stage.isidentifier() and file.is_file():
        text = file.read_text(encoding="utf-8").splitlines()
        opening = takewhile(lambda line: line.startswith("#"), text)
        return "\n".join(line[2:] for line in opening if "@package" not in line) + "\n"
    lines = (conf_dir / "hydra" / "help" / "rlhf_lightning.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("template: |") + 1
    return "\n".join(line.removeprefix("  ") for line in lines[start:]).rstrip() + "\n"


@cache
def in_file(name: str) -> dict[str, Any]:
    """What stands in a file of the config tree, for example ``stage/sft``; nothing where there is none."""
    import yaml

    path = CONF_DIR / f"{name}.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tree = yaml.load(path.read_text(encoding="utf-8"), Loader=loader) if path.is_file() else {}
    return {key: value for key, value in tree.items() if key not in ("defaults", "hydra")}
