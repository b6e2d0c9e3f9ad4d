"""What happens on one of two ranks concerns both: a number that breaks (cases 19 to 21), memory that runs out (29)."""

from functools import partial

import pytest
import torch

from tests.support import pair
from tests.support.numeric_faults import write
from tests.support.two_ranks_worker import MEMORY, NUMBERS

SECONDS = 170


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks, by the name of a case."""
    folder = write(tmp_path_factory.mktemp("ranks"))
    pair.launch("tests.support.two_ranks_worker", str(folder), log=folder, seconds=SECONDS)
    return partial(results, folder)


def results(folder, name):
    found = []
    for rank in range(2):
        file = folder / f"{name}.{rank}.pt"
        assert file.is_file(), (folder / f"rank{rank}.log").read_text()[-3000:]
        found.append(torch.load(file, weights_only=True))
        assert "failed" not in found[rank], found[rank]["failed"]
    return found


@pytest.mark.parametrize(("where", "stage", "place"), NUMBERS)
def test_case_19_to_21_ranks_skip_and_end_together(ranks, where, stage, place):
    found = ranks(f"{where.__name__}-{stage}-{place}")
    for rank in found:
        before, skipped, after = rank["weights"]
        assert rank["skipped"] == 1
        assert torch.equal(before, skipped) and not torch.equal(skipped, after) and after.isfinite().all()
        assert "step 3" in rank["error"] and "3 in a row" in rank["error"]
    for mine, theirs in zip(found[0]["weights"], found[1]["weights"], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("stage", MEMORY)
def test_case_29_a_rank_without_memory_goes_on_in_parts_and_all_learn_the_same(ranks, stage):
    first, second = found = ranks(f"memory-{stage}")
    tag = "perf/micro_batch_size" if stage == "ppo" else "perf/micro_batch_tokens"
    for rank in found:
        enough, little = rank["enough"], rank["little"]
        assert len(little["gradients"]) == len(enough["gradients"]) and not rank["left"]
        for mine, theirs in zip(little["gradients"], enough["gradients"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))
        assert tag in little["logged"] and tag not in enough["logged"]
    assert torch.equal(first["little"]["weights"], second["little"]["weights"])
    assert first["little"]["logged"][tag] == second["little"]["logged"][tag]


def test_case_29_ddp_averages_in_the_backward_where_all_ranks_have_had_memory_for_as_much(ranks):
    for rank in ranks("memory-sft"):
        assert rank["enough"]["inside"] == [False, False, True, True, True]
        assert rank["little"]["inside"] == [False, False, True, False, False]  # it ran out in the fourth step


def test_case_29_a_rank_validates_in_parts_with_the_same_result(ranks):
    first, second = ranks("validation")
    assert first["limit"] is not None and second["limit"] is None
    for rank in (first, second):
        assert rank["little"] == pytest.approx(rank["enough"], rel=1e-6) and len(rank["enough"]) > 1


def test_gradients_are_averaged_as_ddp_averages_them_where_some_are_missing(ranks):
    for rank in ranks("averages"):
        assert [grad is None for grad in rank["ranks"]] == [*[False] * 4, *[True] * 2, *[False] * 2]
        for mine, theirs in zip(rank["ranks"], rank["ddp"], strict=True):
            assert mine is theirs is None or torch.equal(mine, theirs)
        assert rank["sizes"] == [32, 48, 48, 72, 24]  # who has which; three buckets of at most 60 bytes, and a weight
