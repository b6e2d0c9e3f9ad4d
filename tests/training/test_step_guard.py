"""What the guard of the steps counts, and what of it survives a resume; `faults/test_numerics.py` shows it at work."""

import pytest
import torch

from rlhf_lightning.errors import NumericalError
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.training.step_guard import NotFinite, Step, StepGuard


def step(folder):
    return Step(1, Ranks(), lambda: [("weight", torch.ones(1))], folder)


def test_good_steps_that_change_something_are_counted(tmp_path):
    guard = StepGuard(3, "sft")
    with pytest.raises(NumericalError, match="not one step has changed the model: 0 were skipped"):
        guard.require_learned("sft")
    for norm in (1.0, 0.0, 2.0):
        guard.begin()
        guard.record(None, torch.tensor(1.0))
        assert guard.check(torch.tensor(norm), step(tmp_path))
    assert guard.state_dict() == {"skipped": 0, "equal": 0, "learned": 2, "in_row": 0}
    guard.require_learned("sft")


@pytest.mark.filterwarnings("ignore:sft. step 1. loss is not finite")
def test_a_skipped_step_before_a_resume_is_the_first_in_a_row(tmp_path):
    guard, resumed = StepGuard(3, "sft"), StepGuard(3, "sft")
    guard.begin()
    guard.record(torch.ones(1), torch.tensor(torch.nan))
    assert not guard.check(torch.tensor(1.0), step(tmp_path))
    resumed.load_state_dict(guard.state_dict())
    assert resumed.failed
    resumed.begin()
    assert (resumed.in_row, resumed.skipped, resumed.failed) == (1, 1, False)
    resumed.begin()
    assert resumed.in_row == 0
    resumed.load_state_dict({})  # of an older version
    assert (resumed.skipped, resumed.equal, resumed.in_row, resumed.failed) == (0, 0, 0, False)
    resumed.require_learned("sft")


def test_what_is_not_finite_is_in_the_message_unless_more_is_known():
    assert str(NotFinite("a score")) == "a score is not finite"
    assert str(NotFinite("a score", detail="its weight is broken")) == "its weight is broken"


def test_equal_scores_are_equal_on_all_ranks(tmp_path):
    class Other(Ranks):
        """Another rank has only twos, from the lowest to the highest."""

        size = 2

        def gather(self, tensor):
            return torch.stack([tensor.double(), torch.full_like(tensor, 2.0).double()])

    guard = StepGuard(1, "ppo")
    for scores, equal in (([1.0, 1.0], 0), ([2.0, 2.0], 1), ([2.0], 2), ([2.0, torch.nan], 3), ([2.0, 3.0], 3)):
        guard.note_scores(torch.tensor(scores), step(tmp_path)._replace(ranks=Other()))
        assert guard.equal == equal
    guard.note_scores(torch.tensor([2.0]), step(tmp_path))  # one response agrees with itself
    assert guard.equal == 3
