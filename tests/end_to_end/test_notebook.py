"""The notebook of the documentation, cell by cell."""

import json

import matplotlib
import pytest

from rlhf_lightning.tasks.miniature.prepare import prepare_miniature
from tests.gates.gate_sources import ROOT
from tests.support.docs_world import TASK


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
@pytest.mark.filterwarnings("ignore:predict returned None")
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    prepare_miniature(tmp_path / "runs" / "assets" / "miniature", **TASK)
    text = (ROOT / "docs" / "notebook.ipynb").read_text()
    smaller = {"ppo.rollouts=20": "ppo.rollouts=2", "rank.max_prompts=200": "rank.max_prompts=32",
               "evaluate.max_prompts=64": "evaluate.max_prompts=8", "rollouts=8": "rollouts=2"}  # fmt: skip
    for large, small in smaller.items():
        assert text.count(large) == 1
        text = text.replace(large, small)
    names = {}
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    assert names["history"] and "ppo wins" in capsys.readouterr().out
