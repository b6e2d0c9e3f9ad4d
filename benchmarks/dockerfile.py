"""Do what the Dockerfile says where there is no Docker: its steps, in a folder, as a user without rights.

    python -m benchmarks.dockerfile

The folder stands for the disk of the image, a Python of this machine for the one that FROM names, and `nobody` for the
user that the image makes (whoever calls, unless that is root). RUN, COPY, WORKDIR, USER, ENV and CMD are done as they
stand, so that a file that is not copied, a step that needs rights, or a command that is not there is found.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.distribution import ROOT, SMALL

STAND_IN = "nobody"
_ROOTS_STEP = re.compile(r"useradd (?:--\S+ )*(?P<user>\w+) && mkdir (?P<folder>\S+) && chown (?P=user) (?P=folder)")


class Step(NamedTuple):
    """An instruction, what stands behind it, and where."""

    word: str
    rest: str
    line: int


def steps(text: str) -> list[Step]:
    """The instructions of a Dockerfile; lines that end with a backslash go on in the next one.

    >>> steps("# why\\nUSER me\\nRUN a && \\\\\\n  b")
    [Step(word='USER', rest='me', line=2), Step(word='RUN', rest='a &&   b', line=3)]
    """
    found, begun, start = [], "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not begun and (not line.strip() or line.lstrip().startswith("#")):
            continue
        start = start if begun else number
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        word, _, rest = begun.strip().partition(" ")
        found.append(Step(word.upper(), rest.strip(), start))
        begun = ""
    return found


def copied(given: Sequence[Step]) -> list[str]:
    """What is copied from the context, in order."""
    parts = [[part for part in shlex.split(step.rest) if part[:2] != "--"] for step in given if step.word == "COPY"]
    return [source for *sources, _ in parts for source in sources]


class Image:
    """A folder in which steps are done, one after the other.

    Args:
        folder: an empty one, which others may enter.
        context: where COPY takes files from.
        python: what ``python`` is, until a step puts another one into PATH.
    """

    def __init__(self, folder: Path, context: Path, python: Path) -> None:
        self.folder, self.context = folder, context
        self.user: str | None = None  # root
        self.places: dict[str, Path] = {}  # of the image, and here
        self.at = folder
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        self.variables = kept | {"HOME": str(folder / "home"), "PATH": f"{folder / 'bin'}{os.pathsep}{os.defpath}"}
        (folder / "home").mkdir()
        self._owned(folder / "home")
        (folder / "bin").mkdir()
        (folder / "bin/python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (folder / "bin/python").chmod(0o755)

    def do(self, step: Step, words: Sequence[str] = ()) -> None:
        """Do one step; ``words`` are added to CMD.

        Raises:
            subprocess.CalledProcessError: it failed.
            SystemExit: nothing here knows how.
        """
        rest = step.rest
        for place, here in self.places.items():
            rest = rest.replace(place, str(here))
        match step.word:
            case "FROM":
                pass
            case "ARG":
                self.variables.setdefault(*rest.partition("=")[::2])
            case "ENV":
                pairs = [pair.partition("=")[::2] for pair in shlex.split(rest)]
                self.variables |= {name: text.replace("$PATH", self.variables["PATH"]) for name, text in pairs}
            case "USER":
                self.user = rest
            case "WORKDIR":
                self.at = Path(rest)
            case "COPY":
                self._copy(step, shlex.split(rest))
            case "RUN" if self.user is None:
                self._as_root(step)
            case "RUN":
                self.call(["/bin/sh", "-c", rest])
            case "CMD":
                self.call([*json.loads(rest), *words])
            case _:
                sys.exit(f"line {step.line}: {step.word} is not known here")

    def call(self, words: Sequence[str]) -> None:
        """Run a program as the user of the image."""
        print(f"[Dockerfile] {shlex.join(words)}", flush=True)
        subprocess.run(words, cwd=self.at, env=self.variables, check=True, **_rights())

    def _as_root(self, step: Step) -> None:
        """A user and a folder of theirs are all that root may make; the stand-in is there already."""
        made = _ROOTS_STEP.fullmatch(step.rest)
        if made is None:
            sys.exit(f"line {step.line}: root does more here than make a user and a folder; do it as that user")
        place = self.folder / made["folder"].lstrip("/")
        place.mkdir(parents=True)
        self.places[made["folder"]] = place
        self._owned(place)

    def _copy(self, step: Step, words: list[str]) -> None:
        if f"--chown={self.user}" not in words:
            sys.exit(f"line {step.line}: what root owns cannot be changed by {self.user}; add --chown={self.user}")
        *sources, to = [word for word in words if not word.startswith("--")]
        for source in (self.context / name for name in sources):
            target = self.at / to / source.name if to.endswith("/") and source.is_file() else self.at / to
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        for made in self.at.iterdir():
            self._owned(made)

    def _owned(self, path: Path) -> None:
        """Give a folder or file, and all in it, to the user of the image."""
        for part in [path, *path.rglob("*")] if _is_root() else []:
            shutil.chown(part, STAND_IN, _group())


def interpreter(version: str) -> Path | None:
    """A Python of that version that the user of the image may run; None if there is none."""
    for folder in os.environ["PATH"].split(os.pathsep):
        python = Path(folder, f"python{version}")
        works = [python, "-I", "-c", "import ensurepip, venv"]
        try:
            if python.is_file() and not subprocess.run(works, cwd="/", capture_output=True, **_rights()).returncode:
                return python
        except OSError:
            continue  # of somebody else
    return None


def _is_root() -> bool:
    return os.geteuid() == 0


def _rights() -> dict[str, Any]:
    """How a program is started without the rights of root."""
    return {"user": STAND_IN, "group": _group(), "extra_groups": []} if _is_root() else {}


def _group() -> int:
    return pwd.getpwnam(STAND_IN).pw_gid


def main() -> None:
    """Do the steps of the Dockerfile of this checkout, its command at last, in small."""
    given = steps((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    (version,) = [found[1] for step in given if (found := re.match(r"python:([\d.]+)", step.rest))]
    python = interpreter(version)
    if python is None:
        print(f"skipped: there is no Python {version} here that a user without rights may run")
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        image = Image(Path(folder), ROOT, python)
        for step in given:
            began = time.monotonic()
            image.do(step, SMALL)
            print(f"[Dockerfile] line {step.line}: {time.monotonic() - began:.0f} s", flush=True)
    print("the steps of the Dockerfile work")


if __name__ == "__main__":
    main()
