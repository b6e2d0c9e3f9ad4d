"""The speed of sampling counts every token that was sampled, and only the time of sampling."""

import pytest
import torch

from rlhf_lightning.modules.online import Sampled
from rlhf_lightning.rollout import Sampling
from tests.modules.test_ppo import TEXTS, fit, module
from tests.support import tiny


def test_tokens_per_second_of_sampling_are_those_of_the_last_iteration():
    ppo, counted = module(sampling=Sampling(max_new_tokens=10)), []
    sample = ppo.engine.generate

    def counting(*given):
        rollout = sample(*given)
        counted.append(int(rollout.mask.sum()))
        return rollout

    ppo.engine.generate = counting
    logged = fit(ppo, steps=2)
    # the phase holds little else than sampling
    assert logged["perf/tokens_per_second_generate"] == pytest.approx(
        counted[1] / logged["perf/seconds_generate"], rel=0.2
    )
    assert len(counted) == 2 and ppo._sampled == Sampled(0, 0.0)


def test_every_generation_of_an_iteration_counts():
    ppo = module(sampling=Sampling(max_new_tokens=10))
    ppo.configure_model()
    rollouts = [ppo.generate(tiny.prompts(*TEXTS)) for _ in range(2)]
    assert ppo._sampled.tokens == int(torch.stack([rollout.mask.sum() for rollout in rollouts]).sum())
    assert ppo._sampled.seconds > 0
