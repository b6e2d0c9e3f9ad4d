"""A number that breaks on one of two ranks: both skip the step, or both end the run (cases 19 to 21)."""

import pytest
import torch

from tests.support import pair
from tests.support.numeric_faults import write
from tests.support.numeric_faults_worker import CASES

SECONDS = 170


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of both ranks."""
    folder = write(tmp_path_factory.mktemp("ranks"))
    pair.launch("tests.support.numeric_faults_worker", str(folder), log=folder, seconds=SECONDS)
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
