"""The worked example of the documentation raises its reward with any seed."""

import subprocess
import sys

import pytest

from tests.gates.gate_sources import ROOT
from tests.gates.test_docs import program

PAGE = ROOT / "docs" / "extending.md"


@pytest.mark.slow
def test_the_guessing_game_of_the_documentation_is_learned_with_every_seed(tmp_path):
    more = "for seed in range(1, 6): rewards = play(seed); print('learned', rewards[0], sum(rewards[-5:]) / 5)"
    (tmp_path / "page.py").write_text(f"{program(PAGE)}\n{more}\n")
    command = [sys.executable, "-W", "ignore", "page.py"]
    env = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=300)
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("learned")]
    assert len(found) == 5
    for first, last in found:
        assert float(first) < 0.4 and float(last) > 0.8
