"""A number that breaks on one of two ranks: both skip the step, or both end the run (cases 19 to 21)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.faults.numbers import write
from tests.faults.ranks import CASES
from tests.integration.test_strategies import free_port

ROOT = Path(__file__).parents[2]
SECONDS = 170


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of both ranks."""
    folder = write(tmp_path_factory.mktemp("ranks"))
    port = str(free_port())
    ranks = []
    for rank in ("0", "1"):
        own = {"LOCAL_RANK": rank, "RANK": rank, "WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_PORT": port}
        environment = {**os.environ, **own, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        with (folder / f"rank{rank}.log").open("w") as log:
            command = [sys.executable, "-m", "tests.faults.ranks", folder]
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    try:
        for process in ranks:
            process.wait(timeout=SECONDS)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return folder


@pytest.mark.parametrize(("where", "stage", "place"), CASES)
def test_case_19_to_21_ranks_skip_and_end_together(folder, where, stage, place):
    found = []
    for rank in range(2):
        file = folder / f"{where.__name__}-{stage}-{place}.{rank}.pt"
        assert file.is_file(), (folder / f"rank{rank}.log").read_text()[-3000:]
        found.append(torch.load(file, weights_only=True))
        assert "failed" not in found[rank], found[rank]["failed"]
        before, skipped, after = found[rank]["weights"]
        assert found[rank]["skipped"] == 1
        assert torch.equal(before, skipped) and not torch.equal(skipped, after) and after.isfinite().all()
        assert "step 3" in found[rank]["error"] and "3 in a row" in found[rank]["error"]
    for mine, theirs in zip(found[0]["weights"], found[1]["weights"], strict=True):
        assert torch.equal(mine, theirs)
