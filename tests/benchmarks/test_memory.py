"""The table of docs/scaling.md is what `benchmarks.memory` prints."""

from benchmarks import memory
from rlhf_lightning.models.footprint import Setup
from tests.gates.gate_sources import ROOT


def test_the_table_of_the_page_is_the_one_that_is_printed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["memory"])
    memory.main()
    assert capsys.readouterr().out in (ROOT / "docs/scaling.md").read_text()


def test_a_layout_of_the_command_line_is_the_one_of_the_table(monkeypatch, capsys):
    words = ["--model", "8b", "--gpus", "8", "--layout", "fsdp2", "--checkpointing", "1"]
    monkeypatch.setattr("sys.argv", ["memory", *words])
    memory.main()
    assert capsys.readouterr().out.splitlines()[-1] == memory.line("8b", Setup(8, True, checkpointed=1.0), 80.0)
