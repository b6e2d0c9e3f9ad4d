"""The commands of the pages that people start with, run in order in one folder. What a page names must be there: made
by an earlier command of the same reading, or by the reader (`tests/support/docs_world.py`)."""

import pytest
from matplotlib.figure import Figure

from rlhf_lightning.errors import CheckpointError
from tests.gates.gate_sources import ROOT
from tests.support import docs_world

DOCS = ROOT / "docs"
STAGES = [DOCS / "stages" / f"{name}.md" for name in ("sft", "rank", "reward", "ppo", "evaluate")]
READINGS = {
    "start": [ROOT / "README.md", DOCS / "getting_started.md", *STAGES],
    "extending": [DOCS / "extending.md"],
}
ELSEWHERE = {"--config-dir"}  # tests/end_to_end/test_chains.py runs that section of extending.md
pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
    pytest.mark.filterwarnings("ignore:reward hacking"),
]


@pytest.mark.parametrize("reading", READINGS)
def test_the_commands_of_a_page_run_one_after_the_other(reading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Figure, "savefig", lambda figure, image, **given: image.write(b"-"))  # a second for each report
    docs_world.make(tmp_path, [ROOT / "README.md", DOCS / "extending.md"])
    failed = []
    for page in READINGS[reading]:
        for line, words in docs_world.lines_of(page):
            if ELSEWHERE & set(words):
                continue
            try:
                docs_world.follow(words)
            except Exception as error:  # all of them are of interest
                failed.append(f"{page.name}:{line}: {' '.join(words)}\n    {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


def test_the_gate_sees_a_folder_that_no_line_before_has_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```bash\npython train.py stage=ppo task=custom model.path=runs/one/sft data.prompts=p.jsonl\n```")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    ((_, words),) = docs_world.lines_of(page)
    with pytest.raises(CheckpointError, match=r"runs/one/sft"):
        docs_world.follow([*words, "judge=function", "judge.function=json.dumps", "trusted_targets=[json]"])
