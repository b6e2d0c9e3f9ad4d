"""The first rollout shows whether the engine samples from the model that learns; if not, the run ends there."""

import math
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning.errors import NumericalError
from rlhf_lightning.functional.advantage import grpo
from rlhf_lightning.metrics.rollout import gap_to_training
from rlhf_lightning.models import packing
from rlhf_lightning.rollout import LoopEngine
from rlhf_lightning.training.ranks import Ranks
from tests.modules.test_shared_work import group_run


class OffBy(LoopEngine):
    """Says other log-probabilities than those it drew with, from some rollout on."""

    def __init__(self, gap, rollout=1):
        super().__init__()
        self.gap, self.left = gap, rollout

    def generate(self, prompts, sampling, tokenizer=None):
        rollout = super().generate(prompts, sampling, tokenizer)
        self.left -= 1
        if self.left == 0:
            rollout.rollout_logprobs.sub_(self.gap)
        return rollout


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("gap", [0.01, 0.0005])
def test_an_engine_that_samples_from_another_model_ends_the_run_at_its_first_rollout(reuse, gap):
    def run():
        group_run(reuse_logprobs=reuse, advantage=grpo, engine=OffBy(gap))

    if gap < 1e-3:
        run()
        return
    says = r"for this llama model the engine's log-probabilities are 0\.01 nats per token .* 0\.001 at most.*rollout=hf"
    with pytest.raises(NumericalError, match=says):
        run()


def test_later_rollouts_are_not_looked_at():
    group_run(reuse_logprobs=False, advantage=grpo, engine=OffBy(0.01, rollout=2))


def test_packing_that_gives_other_numbers_ends_the_run(monkeypatch):
    pack = packing.pack

    def blurred(*given):
        packed = pack(*given)
        few = len(packed.row) < 4  # what `can_pack` tries stays right
        return packed if few else packed._replace(positions=torch.zeros_like(packed.positions))

    monkeypatch.setattr(packing, "WORTHWHILE", 100.0)
    monkeypatch.setattr(packing, "pack", blurred)
    with pytest.raises(NumericalError, match=r"model\.pack_rows=false where that closes the gap"):
        group_run(share=True, reuse_logprobs=False, advantage=grpo)


def test_the_share_of_ratios_and_the_kl_are_those_of_the_formulas():
    mask = torch.tensor([[True, True, True, False]])
    sampled = torch.tensor([[0.5, 0.5, 0.5, 0.1]]).log()
    training = torch.tensor([[0.5, 0.56, 0.44, 0.9]]).log()
    rollout = SimpleNamespace(mask=mask, rollout_logprobs=sampled)
    found = gap_to_training(rollout, training, Ranks())
    assert found["sampling/ratio_outside"] == pytest.approx(2 / 3)  # 1.12 and 0.88
    expected = sum(r - 1 - math.log(r) for r in (1.12, 0.88)) / 3
    assert found["sampling/engine_kl"] == pytest.approx(expected, rel=1e-4)
    largest = -math.log(0.88)
    assert found["sampling/sampling_logp_difference/max"] == pytest.approx(largest, rel=1e-5)
    assert found["sampling/sampling_logp_difference/mean"] == pytest.approx((largest + math.log(1.12)) / 3, rel=1e-5)
