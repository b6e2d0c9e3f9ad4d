"""What a rollout achieved, under the names users know; every mean has a global denominator."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional.diagnostics import distinct_n, repetition_n
from rlhf_lightning.functional.masking import masked_sum
from rlhf_lightning.modules.base import RLHFModule
from rlhf_lightning.types import Experience, Rollout


def objective(module: RLHFModule, experience: Experience) -> dict[str, float]:
    """What the rollout achieved, averaged over the responses of all ranks."""
    rollout, mask = experience.rollout, experience.mask
    scores, kl = experience.scores.double(), experience.logprobs - experience.ref_logprobs
    ids = [row[m].tolist() for row, m in zip(rollout.response_ids, mask, strict=True)]
    rewards = masked_sum(experience.rewards, mask)
    values: list[Tensor | float] = [
        len(rollout),
        mask.sum(),
        masked_sum(kl, mask),
        scores.sum(),
        scores.square().sum(),
        rewards,
    ]
    values += [-masked_sum(experience.logprobs, mask), rollout.finished.sum()]
    values += [len(ids) * f(ids, n) for f, n in ((distinct_n, 1), (distinct_n, 2))]
    values += [sum(repetition_n(response, 3) for response in ids)]
    episodes, tokens, kl_sum, score, square, reward, surprise, ended, d1, d2, r3 = module.sum_over_ranks(*values)
    mean = score / episodes
    return {
        "episodes": episodes,
        "tokens": tokens,
        "objective/kl": kl_sum / episodes,
        "objective/kl_per_token": kl_sum / max(tokens, 1.0),
        "objective/scores": mean,
        "objective/scores_std": max(square / episodes - mean**2, 0.0) ** 0.5,
        "objective/rlhf_reward": reward / episodes,
        "objective/non_score_reward": (reward - score) / episodes,
        "objective/entropy": surprise / episodes,
        "completions/mean_length": tokens / episodes,
        "completions/eos_rate": ended / episodes,
        "completions/distinct_1": d1 / episodes,
        "completions/distinct_2": d2 / episodes,
        "completions/repetition_3": r3 / episodes,
        **engine_gap(module, rollout, experience.logprobs),
    }


def engine_gap(module: RLHFModule, rollout: Rollout, logprobs: Tensor) -> dict[str, float]:
    """How far the engine's log-probabilities are from those of the training forward, nats."""
    if rollout.rollout_logprobs is None:
        return {}
    gap = torch.where(rollout.mask, (rollout.rollout_logprobs - logprobs).abs(), 0)
    largest = [0.0] * module.world_size
    largest[module.global_rank] = float(gap.max())
    total, count, *largest = module.sum_over_ranks(gap.sum(), rollout.mask.sum(), *largest)
    name = "sampling/sampling_logp_difference"
    return {f"{name}/mean": total / max(count, 1.0), f"{name}/max": max(largest)}
