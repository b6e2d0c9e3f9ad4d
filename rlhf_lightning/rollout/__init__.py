"""Sampling answers from a policy. Token ids in, token ids out; only stop strings and environments take a tokenizer."""

from rlhf_lightning.rollout.continuous import ContinuousEngine
from rlhf_lightning.rollout.engine import RolloutEngine, Sampling, rank_seed
from rlhf_lightning.rollout.environment import Environment, EnvironmentEngine
from rlhf_lightning.rollout.hf import HFGenerateEngine
from rlhf_lightning.rollout.loop import LoopEngine
from rlhf_lightning.rollout.server import ServerEngine

__all__ = [
    "ContinuousEngine",
    "Environment",
    "EnvironmentEngine",
    "HFGenerateEngine",
    "LoopEngine",
    "RolloutEngine",
    "Sampling",
    "ServerEngine",
    "rank_seed",
]
