"""Try what `make dist` has built as somebody who has nothing else: each archive in an environment of its own.

    python -m benchmarks.distribution dist --tag v0.1.0

Torch is installed first, then the archive; then the demo runs, a project made by ``rlhf-lightning new`` trains and
passes its own test, and the Python of README and docs/extending.md runs against what is installed. With a tag, version,
tag, CHANGELOG and CITATION.cff must agree.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.gates.gate_docs import blocks

ROOT = Path(__file__).parent.parent
TORCH = "torch==2.13.0"
PAGES = ("README.md", "docs/extending.md")
SMALL = ("ppo.rollouts=6", "rank.max_prompts=60", "evaluate.max_prompts=32")


def versions() -> dict[str, str]:
    """What each file says the version is; of the changelog its newest section with a number."""
    read = {
        "rlhf_lightning/__init__.py": r'^__version__ = "(.+)"$',
        "CHANGELOG.md": r"^## (\d\S*)",
        "CITATION.cff": r"^version: (.+)$",
    }
    found = {}
    for name, pattern in read.items():
        match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else "none"
    return found


def program(page: str) -> str:
    """The Python blocks of a page, one after the other."""
    found = blocks((ROOT / page).read_text(encoding="utf-8"))
    return "\n".join(block.body for block in found if block.language == "python" and block.no_run is None)


def tried(archive: Path, folder: Path) -> None:
    """Install an archive into a new environment and use it.

    Raises:
        subprocess.CalledProcessError: something does not work; what it printed stands above.
    """
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    surroundings = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
        "HF_HUB_OFFLINE": "1", "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip

    def call(*words: object, at: Path = folder) -> None:
        print(f"[{archive.name}] {' '.join(map(str, words))}", flush=True)
        subprocess.run([str(word) for word in words], cwd=at, env=surroundings, check=True)

    pip = (programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    call(*pip, TORCH)
    call(*pip, f"{archive}[lora]", "pytest")
    call(programs / "rlhf-lightning", "trainer=cpu", "run_dir=runs/demo", *SMALL)
    call(programs / "rlhf-lightning", "new", "my_lab")
    call(programs / "python", "train.py", "experiment=first", "trainer=cpu", at=folder / "my_lab")
    call(programs / "python", "-m", "pytest", "-q", at=folder / "my_lab")
    for number, page in enumerate(PAGES):
        (folder / f"page{number}.py").write_text(program(page), encoding="utf-8")
        call(programs / "python", "-W", "ignore", f"page{number}.py")


def main() -> None:
    """Parse the command line and try every archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tag", help="of the release, vX.Y.Z")
    given = parser.parse_args()
    if given.tag:
        wrong = {name: found for name, found in versions().items() if found != given.tag.removeprefix("v")}
        if wrong:
            sys.exit(f"the tag is {given.tag}, but: {wrong}")
    archives = sorted([*given.folder.resolve().glob("*.whl"), *given.folder.resolve().glob("*.tar.gz")])
    if len(archives) != 2:
        sys.exit(f"{given.folder}: has {len(archives)} archives, not a wheel and a source archive")
    for archive in archives:
        with tempfile.TemporaryDirectory() as folder:
            tried(archive, Path(folder))
    print(f"{len(archives)} archives work")


if __name__ == "__main__":
    main()
