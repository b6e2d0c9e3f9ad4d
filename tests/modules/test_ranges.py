"""What the knobs of modules, engines, scorers, controllers and schedules may be: the ends of every range."""

from functools import partial

import pytest
import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules.dpo import DPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.optim.kl_controllers import AdaptiveKL, FixedKL, LogSpaceKL
from rlhf_lightning.optim.schedules import constant, cosine, linear
from rlhf_lightning.rollout import LoopEngine, Sampling
from rlhf_lightning.rollout.environment import EnvironmentEngine
from rlhf_lightning.scoring.functions import FunctionScorer
from rlhf_lightning.scoring.reward_model import RewardModelScorer
from tests.support import tiny

COUNT = ([1], [0])  # allowed, refused
FROM_ZERO = ([0], [-1])
ABOVE_ZERO = ([0.5], [0])
SHARE = ([0, 1], [-0.1, 1.1])
NONZERO_SHARE = ([0.5, 1], [0, 1.1])
UP_TO_A_BILLION = ([0, 1e9], [-1, 1.5e9])


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)])


MADE = {
    PPOSettings: {
        "group_size": COUNT, "ppo_epochs": COUNT, "num_minibatches": COUNT, "micro_batch_size": COUNT,
        "entropy_coef": FROM_ZERO, "max_approx_kl": ABOVE_ZERO, "value_coef": FROM_ZERO, "value_clip_range": ABOVE_ZERO,
        "critic_lr": ABOVE_ZERO, "missing_eos_penalty": FROM_ZERO, "score_clip": ABOVE_ZERO, "max_resamples": FROM_ZERO,
        "critic_warmup": FROM_ZERO, "max_grad_norm": FROM_ZERO,
    },
    Sampling: {
        "max_new_tokens": COUNT, "temperature": ABOVE_ZERO, "top_k": FROM_ZERO, "top_p": NONZERO_SHARE,
        "min_new_tokens": FROM_ZERO,
    },
    LoopEngine: {"compact_below": SHARE, "micro_batch_size": COUNT, "look_every": COUNT},
    partial(EnvironmentEngine, LoopEngine(), dict): {"max_turns": COUNT, "max_tokens": COUNT},
    partial(FunctionScorer, len): {"timeout": ([0.5, 1e9], [0, 1.5e9]), "retries": FROM_ZERO},
    FixedKL: {"coef": UP_TO_A_BILLION},
    AdaptiveKL: {
        "init_coef": ABOVE_ZERO, "target": ABOVE_ZERO, "horizon": ABOVE_ZERO, "clip": NONZERO_SHARE,
    },
    LogSpaceKL: {
        "init_coef": ([0.5, 1e9], [0, 1.5e9]), "target": ABOVE_ZERO, "change_gain": FROM_ZERO,
        "raise_gain": ABOVE_ZERO, "lower_gain": ABOVE_ZERO, "max_step": ABOVE_ZERO, "floor": NONZERO_SHARE,
        "ceiling": ([1], [0.9]),
    },
    partial(linear, optimizer(), 10): {"warmup_ratio": SHARE, "final": FROM_ZERO},
    partial(cosine, optimizer(), 10): {"warmup_ratio": SHARE, "final": FROM_ZERO},
    partial(constant, optimizer(), 10): {"warmup_ratio": SHARE},
    partial(RewardModule, tiny.policy(), tiny.tokenizer(), torch.optim.SGD): {
        "head_std": FROM_ZERO, "num_layers": COUNT, "max_grad_norm": FROM_ZERO,
    },
    partial(DPOModule, tiny.policy(), tiny.tokenizer(), torch.optim.SGD, nll_coef=1): {
        "loss_coef": FROM_ZERO, "nll_coef": FROM_ZERO,
    },
}  # fmt: skip


@pytest.mark.parametrize("make", MADE, ids=lambda make: getattr(make, "func", make).__name__)
def test_a_knob_takes_the_ends_of_its_range_and_nothing_beyond(make):
    for name, (allowed, refused) in MADE[make].items():
        for value in allowed:
            make(**{name: value})
        for value in refused:
            with pytest.raises(ConfigError, match=rf"{name}={value}: must be "):
                make(**{name: value})


def test_a_reward_model_is_asked_for_one_answer_at_least():
    with pytest.raises(ConfigError, match="micro_batch_size=0: must be at least 1"):
        RewardModelScorer(Pretrained("nowhere"), micro_batch_size=0)
