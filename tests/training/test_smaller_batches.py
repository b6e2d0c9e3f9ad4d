"""Which ranks may do again what did not fit; `faults/test_memory.py` and `faults/test_two_ranks.py` show them do it."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from rlhf_lightning.errors import OutOfMemory
from rlhf_lightning.training.micro_batches import Schedule, most_tokens
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.training.smaller_batches import SmallerMicroBatches, Splitting
from rlhf_lightning.types import Rollout

pytestmark = pytest.mark.filterwarnings("ignore:.*out of memory.*:UserWarning")
WAITED_FOR = SimpleNamespace(may_repeat=False)


def test_ranks_that_others_wait_for_end_with_advice_and_other_errors_pass_through():
    batch = SimpleNamespace(input_ids=torch.ones(3, 5))

    def fails(error):
        def step(_):
            raise error

        return step

    splitting = Splitting("sft")
    for work in (splitting.validate, lambda b, s, r: splitting.forward(b, s, r, first=True)):
        with pytest.raises(OutOfMemory, match=r"sft: out of memory with 3 rows of 5 tokens; lower sft\.data\.micro"):
            work(batch, fails(torch.OutOfMemoryError("CUDA out of memory")), WAITED_FOR)
        with pytest.raises(RuntimeError, match=r"^shapes$"):
            work(batch, fails(RuntimeError("shapes")), WAITED_FOR)
    loss = torch.ones((), requires_grad=True)
    splitting.backward(splitting.forward(batch, lambda _: 3 * loss, WAITED_FOR, first=True), restart=None)
    assert loss.grad == 3


def test_a_rank_that_others_wait_for_does_not_try_a_rollout_again():
    tried = []

    def attempt(schedule):
        tried.append(schedule.micro)
        raise torch.OutOfMemoryError("CUDA out of memory")

    for alone, expected in ((True, [4, 2, 1]), (False, [4])):
        tried.clear()
        ranks = SimpleNamespace(may_repeat=alone, device=torch.device("cpu"))
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


def test_ranks_may_repeat_what_no_other_waits_for():
    ddp, static, sharded = DDPStrategy(), DDPStrategy(), ModelParallelStrategy()
    assert all(Ranks(strategy).may_repeat for strategy in (None, SingleDeviceStrategy("cpu"), ddp))
    for synchronous in (True, False):  # whether its backward averages gradients
        ddp.model = SimpleNamespace(require_backward_grad_sync=synchronous)
        static.model = SimpleNamespace(require_backward_grad_sync=synchronous, static_graph=True)
        assert Ranks(ddp).may_repeat is not synchronous
        assert not Ranks(static).may_repeat and not Ranks(sharded).may_repeat
        with torch.no_grad():
            assert Ranks(ddp).may_repeat and not Ranks(sharded).may_repeat
    assert [Ranks(strategy).averages for strategy in (None, ddp, static, sharded)] == [False, True, False, False]


def test_a_step_is_proven_when_one_behind_the_first_had_memory_for_as_many_tokens():
    splitting, known = Splitting("sft"), []

    def step(*sizes, limit=None):
        splitting.limit = limit
        for size in sizes:
            splitting.expect(SimpleNamespace(input_ids=torch.ones(size, 5)), first=size == sizes[0])
        known.append(not splitting.is_unproven())
        splitting.passed(Ranks(), apart=True)

    for sizes in ((4, 2), (2, 4), (3, 4), (4, 2), (1, 5), (2, 3)):
        step(*sizes)
    assert known == [False, False, True, True, False, True]
    step(3, limit=10)  # memory ran out since
    step(2, limit=10)
    assert known[-2:] == [False, True] and splitting.logged() == {"perf/micro_batch_tokens": 10.0}


def rollout(prompts, responses, columns=(4, 6)):
    """Rows of so many tokens."""
    prompt, response = (torch.arange(width)[None] for width in columns)
    mask = response < torch.tensor(responses)[:, None]
    return Rollout(
        prompt_ids=prompt.expand(len(prompts), -1), prompt_mask=prompt >= columns[0] - torch.tensor(prompts)[:, None],
        response_ids=response.expand(len(prompts), -1), mask=mask, finished=mask.any(1), rollout_logprobs=None,
        weight_version=torch.zeros(len(prompts)), rows=({},) * len(prompts),
    )  # fmt: skip


def test_a_minibatch_is_proven_by_the_tokens_of_its_largest_micro_batch():
    short, long = rollout([1, 2, 3, 2], [3, 2, 1, 2]), rollout([1, 4, 1, 1], [1, 6, 1, 1])
    even, by_length, packed = (
        Schedule(4, 4, 2, 2, by_length=length, packed=pack)
        for length, pack in ((False, False), (True, False), (True, True))
    )
    assert [most_tokens(short, schedule) for schedule in (even, by_length, packed)] == [20, 10, 8]
    assert [most_tokens(long, schedule) for schedule in (even, by_length, packed)] == [20, 10, 10]
    work, known = SmallerMicroBatches("ppo"), []
    for rows in (short, short, short, long, long):
        known.append(not work.is_unproven(rows, packed))
        work.passed(rows, packed)
    assert known == [False, False, True, False, True]
    work.rows = 1
    wide = rollout([4, 4, 4, 4], [3, 3, 3, 3])
    assert (
        most_tokens(wide, packed) == 14
        and not work.is_unproven(wide, packed)
        and work.logged(Ranks()) == {"perf/micro_batch_size": 1.0}
    )


def test_smaller_micro_batches_are_more_of_them_and_never_larger_ones():
    schedule = Schedule(rows=16, minibatch=8, micro=3, micro_batches=3, by_length=False)
    assert [(s.micro, s.micro_batches) for s in map(schedule.at_most, (1, 2, 3, 9))] == [(1, 8), (2, 4), (3, 3), (3, 3)]
