"""Sampling answers from a policy. Token ids in, token ids out; no tokenizer inside."""

from rlhf_lightning.rollout.engine import RolloutEngine, Sampling, rank_seed
from rlhf_lightning.rollout.hf import HFGenerateEngine
from rlhf_lightning.rollout.loop import LoopEngine

__all__ = ["HFGenerateEngine", "LoopEngine", "RolloutEngine", "Sampling", "rank_seed"]
