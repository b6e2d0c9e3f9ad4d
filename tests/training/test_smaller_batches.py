"""Memory that runs out where several processes wait for each other; `faults/test_memory.py` shows one process."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from rlhf_lightning.errors import OutOfMemory
from rlhf_lightning.training.micro_batches import Schedule
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.training.smaller_batches import SmallerMicroBatches, Splitting

pytestmark = pytest.mark.filterwarnings("ignore:.*out of memory.*:UserWarning")
MEETING = SimpleNamespace(meet_in_backward=True)


def test_ranks_that_meet_in_the_backward_end_with_advice_and_other_errors_pass_through():
    batch = SimpleNamespace(input_ids=torch.ones(3, 5))

    def fails(error):
        def step(_):
            raise error

        return step

    splitting = Splitting("sft")
    for work in (splitting.validate, lambda b, s, r: splitting.forward(b, s, r, first=True)):
        with pytest.raises(OutOfMemory, match=r"sft: out of memory with 3 rows of 5 tokens; lower sft\.data\.micro"):
            work(batch, fails(torch.OutOfMemoryError("CUDA out of memory")), MEETING)
        with pytest.raises(RuntimeError, match=r"^shapes$"):
            work(batch, fails(RuntimeError("shapes")), MEETING)
    loss = torch.ones((), requires_grad=True)
    splitting.backward(splitting.forward(batch, lambda _: 3 * loss, MEETING, first=True), restart=None)
    assert loss.grad == 3


def test_one_rank_of_several_does_not_try_again_alone():
    tried = []

    def attempt(schedule):
        tried.append(schedule.micro)
        raise torch.OutOfMemoryError("CUDA out of memory")

    for size, expected in ((1, [4, 2, 1]), (2, [4])):
        tried.clear()
        ranks = SimpleNamespace(size=size, device=torch.device("cpu"))
        with pytest.raises(OutOfMemory, match=r"ppo: out of memory with \d rows? at once; lower ppo\.settings\.micro"):
            SmallerMicroBatches("ppo").run(attempt, Schedule(8, 4, 4, 1, by_length=False), ranks, restart=lambda: None)
        assert tried == expected


def test_what_fitted_is_remembered_only_where_it_is_less_than_asked_for():
    def attempt(schedule):
        if schedule.micro > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return schedule.micro

    for micro, remembered in ((2, None), (4, 2)):
        work = SmallerMicroBatches("ppo")
        assert work.run(attempt, Schedule(8, 4, micro, 1, by_length=False), Ranks(), restart=lambda: None) == 2
        assert work.rows == remembered


def test_one_device_waits_for_nobody_and_several_do():
    assert not Ranks().meet_in_backward and not Ranks(SingleDeviceStrategy("cpu")).meet_in_backward
    assert Ranks(DDPStrategy()).meet_in_backward


def test_smaller_micro_batches_are_more_of_them_and_never_larger_ones():
    schedule = Schedule(rows=16, minibatch=8, micro=3, micro_batches=3, by_length=False)
    assert [(s.micro, s.micro_batches) for s in map(schedule.at_most, (1, 2, 3, 9))] == [(1, 8), (2, 4), (3, 3), (3, 3)]
