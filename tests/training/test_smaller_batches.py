"""Memory that runs out where several processes wait for each other; `faults/test_memory.py` shows one process."""

from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning.errors import OutOfMemory
from rlhf_lightning.training.smaller_batches import Splitting

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
