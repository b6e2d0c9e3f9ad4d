"""``rlhf-lightning new``: a small project of the user's, ready to train."""

from __future__ import annotations

import argparse
import keyword
import shutil
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.checkpoint.places import write_file
from rlhf_lightning.cli.arguments import parser
from rlhf_lightning.console.streams import say
from rlhf_lightning.errors import ConfigError, DiskError

_FILES = Path(__file__).parent / "project"  # each with .txt behind its name
_NAME = "my_project"  # as they call it


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    take = parser(
        "new",
        "Write a small project: pyproject, config files, a module, a reward function, a callback, a datamodule, a "
        "test, and a train.py that knows them, so that neither an import path nor trusted_targets is typed.",
        "rlhf-lightning new my_project",
    )
    take.add_argument("name", metavar="NAME", help="of the folder and the package in it")
    return take


def run(words: Sequence[str]) -> None:
    """Write the project.

    Raises:
        ConfigError: the name cannot be that of a package, or something is there already.
        DiskError: it cannot be written.
    """
    folder = Path(arguments().parse_args(words).name)
    name = folder.name
    if not name.isidentifier() or keyword.iskeyword(name) or name in ("rlhf_lightning", "conf", "tests", "train"):
        raise ConfigError(f"new {name}: cannot be the name of a Python package; take letters, digits and underscores")
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{folder}: is there already; choose another name") from error
    except OSError as error:
        raise DiskError(f"{folder}: cannot write here ({error})") from error
    for file in sorted(_FILES.rglob("*.txt")):
        place = file.relative_to(_FILES).with_suffix("").as_posix().replace(_NAME, name)
        place = ".gitignore" if place == "gitignore" else place
        write_file(folder / place, file.read_text(encoding="utf-8").replace(_NAME, name))
    say(f"{folder}: train with\n\n  cd {folder}\n  {_python()} train.py experiment=first")


def _python() -> str:
    return "python" if shutil.which("python") else "python3"
