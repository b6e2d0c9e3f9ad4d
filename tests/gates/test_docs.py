import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from rlhf_lightning.cli import arena, label, runs
from rlhf_lightning.cli.commands import COMMANDS, command
from rlhf_lightning.config.compose import compose
from rlhf_lightning.config.locations import help_text
from rlhf_lightning.data.check import parser
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.stages import Run
from rlhf_lightning.stages.parts import check_parts
from tests.gates.gate_docs import blocks, commands, overrides
from tests.gates.gate_sources import ROOT, none_of, read
from tests.support import docs_world

FILES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SKIPS = 8  # blocks that may be left out of the run, over all files


def program(path):
    """All Python blocks of a file as one program that reports line numbers of the file."""
    lines = []
    for block in blocks(path.read_text()):
        if block.language == "python" and block.no_run is None:
            lines += [""] * (block.line - 1 - len(lines)) + block.body.splitlines()
    return "\n".join(lines)


def run_pages(folder, programs):
    """Run programs by the names of their pages; what those that fail have said, by name."""
    for name, text in programs.items():
        (folder / name).mkdir()
        (folder / name / "page.py").write_text(text)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", str(ROOT / "tests" / "support" / "pages.py")]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: (folder / name / "said").read_text() for name in done.stdout.split()}


def test_python_in_the_documentation_runs(tmp_path):
    programs = {str(p.relative_to(ROOT)).replace("/", "."): program(p) for p in FILES}
    programs = {name: text for name, text in programs.items() if text.strip()}
    assert len(programs) >= 7
    failed = run_pages(tmp_path, programs | {"wrong.md": "\n\nprint('seen')\n1 / 0"})
    assert 'page.py", line 4' in failed["wrong.md"] and "seen" in failed.pop("wrong.md")
    assert failed == {}


ROOMS = {path.parent.name for path in (ROOT / "rlhf_lightning").glob("*/__init__.py")}
IN_PACKAGE = re.compile(
    rf"`(?:rlhf_lightning\.(?=\w)|(?={'|'.join(sorted(ROOMS - {'data', 'rollout'}))}))"  # those are sections, too
    rf"((?:{'|'.join(ROOMS)})\.[\w.]*\w)`"
)


def test_what_the_documentation_names_in_the_package_is_there():
    named = {}  # where each name stands
    for page, text in read(FILES):
        for name in IN_PACKAGE.findall(text.partition("\n## Unreleased")[0]):  # the changelog lists what has moved
            if not name.endswith((".yaml", ".json", ".csv")):
                named.setdefault(f"rlhf_lightning.{name}", set()).add(page)
    assert len(named) > 50
    none_of(f"{name}, which {', '.join(sorted(named[name]))} names" for name in named if not exists(name))


def exists(name):
    try:
        return find_spec(name) is not None or hasattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
    except ModuleNotFoundError:
        module, _, owner = name.rpartition(".")[0].rpartition(".")
        return hasattr(getattr(import_module(module), owner, None), name.rpartition(".")[2])


def all_commands():
    """Those of the help and of all pages, but for what test_docs_run runs."""
    yield from (pytest.param(words, id=f"help: {' '.join(words)}") for words in commands(help_text()))
    for path in FILES:
        run = docs_world.lines_of(path) if path in (*docs_world.START, docs_world.EXTENDING) else []
        for block in blocks(path.read_text()):
            if block.language in docs_world.SHELL and block.no_run is None:
                words = [words for words in commands(block.body) if (block.line, words) not in run]
                yield from (pytest.param(w, id=f"{path.name}:{block.line}: {' '.join(w)}") for w in words)


@pytest.mark.parametrize("words", list(all_commands()))
def test_command_in_the_documentation_composes(words):
    if words[:1] and words[0] in COMMANDS:
        second = words[1:2] in (["check"], ["compare"], ["export"], ["import"], ["results"])
        given, more = parser_of(words).parse_known_args(words[1 + second :])
        assert given and all("=" in word for word in more)  # `compare` hands the rest on
    elif "--config-dir" not in words and not any(word.startswith("after=") for word in words):  # of an earlier run
        config = compose(overrides(words))
        for stage in config["stages"]:
            try_parts(config, stage)


def parser_of(words):
    """What the command line of a command is parsed with."""
    if words[:2] in (["data", "check"], ["runs", "compare"]):
        return parser() if words[0] == "data" else runs.compare_arguments()
    if words[0] == "label" and words[1] in ("export", "import"):
        return label.export_arguments() if words[1] == "export" else label.import_arguments()
    if words[:2] == ["arena", "results"]:
        return arena.results_arguments()
    return sys.modules[command(words[0]).__module__].arguments()


def try_parts(config, stage):
    """Build and call what a command puts into the slots of a stage, except for parts of the reader's own."""
    try:
        check_parts(Run(config | {"resume": "none"}), stage)
    except ConfigError as error:
        if "cannot import my_project" not in str(error):
            raise


def test_the_gate_sees_a_command_whose_part_cannot_be_called():
    config = compose(["stage=ppo", "ppo.loss._target_=rlhf_lightning.functional.kto.kto_loss"])
    with pytest.raises(ConfigError, match=r"ppo\.loss: kto_loss cannot be called"):
        try_parts(config, "ppo")


def test_few_blocks_are_left_out():
    skipped = [f"{p.name}:{b.line}: {b.no_run}" for p in FILES for b in blocks(p.read_text()) if b.no_run]
    assert len(skipped) <= SKIPS, skipped


def test_there_is_documentation_to_check():
    assert ROOT / "README.md" in FILES
    assert len(list(all_commands())) >= 6


SAMPLE = """
```bash
pip install x
.venv/bin/python train.py stage=ppo \\
    seed=1  # comment
OMP_NUM_THREADS=1 rlhf-lightning -m 'kl=fixed,adaptive' --cfg job
```
<!-- no-run: needs a GPU -->
```python
x = 1
```
Text.

```python
y = 2
```
"""


def test_blocks_and_commands_are_found():
    found = blocks(SAMPLE)
    assert [(b.language, b.no_run) for b in found] == [("bash", None), ("python", "needs a GPU"), ("python", None)]
    assert commands(found[0].body) == [["stage=ppo", "seed=1"], ["-m", "kl=fixed,adaptive", "--cfg", "job"]]
    assert overrides(commands(found[0].body)[1]) == ["kl=fixed"]
    assert SAMPLE.splitlines()[found[2].line - 1] == "y = 2"


def test_the_gate_sees_a_wrong_command():
    with pytest.raises(Exception, match="nonsense"):
        compose(overrides(["nonsense=1"]))
    with pytest.raises(ConfigError):
        compose(overrides(["+x._target_=[os.system]"]))
