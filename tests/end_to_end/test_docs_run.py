"""The commands of the pages that people start with, run in order in one folder. What a page names must be there: made
by an earlier command of the same reading, or by the reader (`tests/support/docs_world.py`). Those of docs/extending.md
name parts of a package outside of the repository, and each of them is seen to be called."""

import importlib
import re
import sys
from collections import Counter
from functools import wraps

import pytest

from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.evaluation import report
from tests.gates.gate_sources import ROOT
from tests.support import docs_world

DOCS = ROOT / "docs"
STAGES = [DOCS / "stages" / f"{name}.md" for name in ("sft", "rank", "reward", "ppo", "evaluate")]
START = [
    ROOT / "README.md",
    DOCS / "getting_started.md",
    *STAGES,
    DOCS / "after_training.md",
    DOCS / "stages" / "score.md",
    DOCS / "people.md",
    DOCS / "tutorial.md",
]
EXTENDING = DOCS / "extending.md"
ELSEWHERE = "--config-dir"  # tests/end_to_end/test_chains.py runs that section of extending.md
SEAMS = {
    "advantage": "batch_mean", "policy loss": "unclipped", "reward loss": "hinge", "DPO loss": "squared",
    "engine": "TapedEngine", "critic": "TwoLayerHead", "row format": "ForumData", "data module": "CountingData",
    "logger": "LastNumbers", "callback": "LowEntropy", "KL controller": "WarmUpKL", "module": "ShortAnswersPPO",
    "environment": "Guess",
}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
    pytest.mark.filterwarnings("ignore:reward hacking"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the reader's data, model and package, as the current one."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("reader")
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr(report, "save_figures", lambda *given: [])  # two seconds for each report
        docs_world.make(folder, [ROOT / "README.md", EXTENDING])
        yield folder
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_project"]:
            del sys.modules[name]


def test_the_commands_of_the_first_pages_run_one_after_the_other(world):
    failed = []
    for page in START:
        for line, words in docs_world.lines_of(page):
            try:
                docs_world.follow(words)
            except Exception as error:  # all of them are of interest
                failed.append(f"{page.name}:{line}: {' '.join(words)}\n    {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("words", [words for _, words in docs_world.lines_of(EXTENDING)], ids=" ".join)
def test_a_command_of_the_page_on_extending_runs_and_calls_what_it_names(words, world, monkeypatch):
    if ELSEWHERE in words:
        return
    calls = Counter()
    named = re.findall(r"\b(my_project[\w.]*)\.(\w+)", " ".join(words))
    for module, name in named:
        count(importlib.import_module(module), name, calls, monkeypatch)
    docs_world.follow(words)
    assert all(calls[name] >= (2 if module.endswith("losses") else 1) for module, name in named), calls  # 1: at set-up


def count(module, name, calls, monkeypatch):
    part = getattr(module, name)

    @wraps(part, updated=())
    def counted(*given, **named):
        calls[name] += 1
        return part(*given, **named)

    monkeypatch.setattr(module, name, counted)


def test_every_seam_has_its_line():
    commands = [word for _, words in docs_world.lines_of(EXTENDING) for word in words]
    missing = [seam for seam, name in SEAMS.items() if not any(f".{name}" in word for word in commands)]
    assert not missing and any(word.startswith("stages=") for word in commands)


def test_the_gate_sees_a_folder_that_no_line_before_has_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```bash\npython train.py stage=ppo task=custom model.path=runs/one/sft data.prompts=p.jsonl\n```")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    ((_, words),) = docs_world.lines_of(page)
    with pytest.raises(CheckpointError, match=r"runs/one/sft"):
        docs_world.follow([*words, "judge=function", "judge.function=json.dumps", "trusted_targets=[json]"])
