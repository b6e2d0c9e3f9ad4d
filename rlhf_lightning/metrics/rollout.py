"""What a rollout achieved, under the names users know, over the responses of all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.functional.diagnostics import distinct_n, repetition_n
from rlhf_lightning.functional.kl import estimate, k3
from rlhf_lightning.functional.masking import masked_sum
from rlhf_lightning.functional.ppo import masked_log_ratio
from rlhf_lightning.metrics.correlation import pearson
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.types import Experience, Rollout

ENGINE_GAP = "sampling/sampling_logp_difference"
CLOSE = (0.9, 1.1)  # ratios of probabilities that two engines with the same weights rarely leave


class Sampled(NamedTuple):
    """What was sampled in an iteration on this rank, samples for baselines and repeated ones included."""

    tokens: int
    seconds: float

    def plus(self, rollout: Rollout, seconds: float) -> Sampled:
        """The same with another rollout, which took so long."""
        return Sampled(self.tokens + int(rollout.mask.sum()), self.seconds + seconds)


def rollout_metrics(
    experience: Experience, ranks: Ranks, group_size: int = 1, details: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Means, extremes and shares over the responses of all ranks. Collective.

    Args:
        experience: of this rank.
        ranks: each holds as many responses.
        group_size: neighbours that answer the same prompt.
        details: columns [B] that the scorer gives beside its score, by name; NaN where it abstained.
    """
    table = _gathered(_columns(experience), ranks)
    tokens, episodes, kl = table["length"].sum(), len(table["length"]), table["kl"]
    length, ended, judged = table["length"], table["finished"].bool(), ~table["score"].isnan()
    scores = table["score"][judged] if judged.any() else torch.zeros(1)
    logged: dict[str, Tensor | float] = {
        "episodes": episodes,
        "tokens": tokens,
        "objective/kl": kl.mean(),
        "objective/kl_per_token": kl.sum() / tokens.clamp(min=1),
        "objective/kl_p99": kl.quantile(0.99),
        "objective/scores": scores.mean(),
        "objective/scores_std": scores.std(correction=0),
        "objective/scores_min": scores.min(),
        "objective/scores_max": scores.max(),
        "objective/rlhf_reward": table["reward"].mean(),
        "objective/non_score_reward": (table["reward"] - table["score"].nan_to_num(0.0)).mean(),
        "objective/entropy": table["surprise"].mean(),
        "completions/mean_length": length.mean(),
        "completions/min_length": length.min(),
        "completions/max_length": length.max(),
        "completions/mean_terminated_length": length[ended].mean() if ended.any() else 0.0,
        "completions/eos_rate": ended.double().mean(),
        "completions/clipped_ratio": (~ended).double().mean(),
        "completions/distinct_1": table["distinct_1"].mean(),
        "completions/distinct_2": table["distinct_2"].mean(),
        "completions/repetition_3": table["repetition_3"].mean(),
        "completions/duplicates": table["duplicate"].mean(),
        "guard/score_length_pearson": pearson(scores, length[judged]) if judged.any() else 0.0,
    }
    if group_size > 1:
        groups = [group[~group.isnan()] for group in table["score"].view(-1, group_size)]
        stds = torch.stack([group.std() for group in groups if len(group) > 1] or [torch.zeros(())])
        logged["reward_std"], logged["frac_reward_zero_std"] = stds.mean(), (stds == 0).double().mean()
    logged |= _of_sources(details or {}, ranks)
    return {name: float(value) for name, value in logged.items()}


def _of_sources(details: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor | float]:
    """Mean and spread of each detail over the responses that it judged."""
    logged: dict[str, Tensor | float] = {}
    for name, column in _gathered(details, ranks).items() if details else ():
        judged = column[~column.isnan()]
        if len(judged):
            logged |= {f"rewards/{name}/mean": judged.mean(), f"rewards/{name}/std": judged.std(correction=0)}
    return logged


def _columns(experience: Experience) -> dict[str, Tensor]:
    """One number per response of this rank, each [B]."""
    rollout, mask = experience.rollout, experience.rollout.mask
    ids = [row[m].tolist() for row, m in zip(rollout.response_ids, mask, strict=True)]
    seen = [tuple(response) for response in ids]
    kl = torch.where(mask, experience.logprobs - experience.ref_logprobs, 0)
    lists = {
        "distinct_1": [distinct_n(ids, 1)] * len(ids),  # of the rank's responses together
        "distinct_2": [distinct_n(ids, 2)] * len(ids),
        "repetition_3": [repetition_n(response, 3) for response in ids],
        "duplicate": [float(seen.count(response) > 1) for response in seen],
    }
    return {
        "kl": kl.sum(1),
        "length": mask.sum(1),
        "score": experience.scores,
        "reward": torch.where(mask, experience.rewards, 0).sum(1),
        "surprise": -torch.where(mask, experience.logprobs, 0).sum(1),
        "finished": rollout.finished,
        **{name: torch.tensor(values, device=mask.device) for name, values in lists.items()},
    }


def _gathered(columns: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The columns of all ranks, float64 [N]; every rank holds the same number of responses."""
    local = torch.stack([column.double() for column in columns.values()], dim=1)
    return dict(zip(columns, ranks.gather(local).flatten(0, 1).unbind(1), strict=True))


def engine_gap(experience: Experience, ranks: Ranks) -> dict[str, float]:
    """How far the engine's log-probabilities are from those of the training forward, and the correction for it."""
    rollout = experience.rollout
    if rollout.rollout_logprobs is None:
        return {}
    logged = gap_to_training(rollout, experience.logprobs, ranks)
    if experience.weights is not None:
        weights = experience.weights.expand_as(experience.logprobs)
        total, count = ranks.sum(masked_sum(weights, rollout.mask), rollout.mask.sum())
        logged["sampling/importance_sampling_ratio/mean"] = total / max(count, 1.0)
    return logged


def gap_to_training(rollout: Rollout, logprobs: Tensor, ranks: Ranks) -> dict[str, float]:
    """Mean and largest ``|log p_engine - log p_training|``, k3 of KL(engine || training), and the share of tokens whose
    ratio p_training / p_engine is outside of `CLOSE`. Collective.

    Args:
        rollout: with log-probabilities of the engine.
        logprobs: of the training forward, [B, T].
        ranks: over which is averaged.
    """
    mask, sampled = rollout.mask, rollout.rollout_logprobs
    assert sampled is not None
    gap = torch.where(mask, (sampled - logprobs).abs(), 0)
    ratio = masked_log_ratio(logprobs, sampled, mask).exp()
    outside = mask & ((ratio < CLOSE[0]) | (ratio > CLOSE[1]))
    kl = estimate(sampled, logprobs, mask, k3)
    *sums, count = ranks.sum(gap.sum(), kl.sum(), outside.sum(), mask.sum())
    mean, kl_mean, share = (total / max(count, 1.0) for total in sums)
    return {
        f"{ENGINE_GAP}/mean": mean,
        f"{ENGINE_GAP}/max": float(ranks.gather(gap.max()).max()),
        "sampling/engine_kl": kl_mean,
        "sampling/ratio_outside": share,
    }
