"""Where the configuration files are. Imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

CONF_DIR = next(d for d in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if d.is_dir())
"""The config tree: inside the package when installed from a wheel, beside it in a checkout or editable install."""


def help_text(conf_dir: Path = CONF_DIR) -> str:
    """What ``--help`` shows: the block ``template: |`` of ``conf/hydra/help/rlhf_lightning.yaml``.

    Hydra reads the same file when it is asked for help; this function only saves importing Hydra for a page of text.
    """
    lines = (conf_dir / "hydra" / "help" / "rlhf_lightning.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("template: |") + 1
    return "\n".join(line.removeprefix("  ") for line in lines[start:]).rstrip() + "\n"
