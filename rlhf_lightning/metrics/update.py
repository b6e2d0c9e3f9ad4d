"""Metrics of the updates on a rollout: sums over tokens, micro-batches and ranks, divided once at the end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_lightning.functional.masking import masked_sum
from rlhf_lightning.functional.ppo import PolicyLoss, ValueLoss, explained_variance
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.types import Experience, Rollout


class UpdateMetrics:
    """Sums and largest values of one optimizer step, or of all steps of a rollout."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.highest: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, stats: Mapping[str, Tensor], highest: Mapping[str, Tensor] | None = None) -> None:
        """Add the sums [] of one part; of names that begin with ``max_`` the largest value is kept."""
        for name, value in stats.items():
            if name.startswith("max_"):
                self._raise(name, value)
            else:
                self.sums[name] = self.sums.get(name, 0) + value.detach().double()
        for name, value in (highest or {}).items():
            self._raise(name, value)
        if highest and not self.steps:
            self._raise("max_first_gap", torch.maximum(highest["max_ratio"] - 1, highest["max_minus_ratio"] + 1))

    def _raise(self, name: str, value: Tensor) -> None:
        known = self.highest.get(name)
        self.highest[name] = value.detach().double() if known is None else torch.maximum(known, value.detach().double())

    def summary(self, ranks: Ranks) -> dict[str, float]:
        """Means over all tokens that were learned from, under the names users know. Collective."""
        names = sorted(self.sums)
        sums = dict(zip(names, ranks.sum(*(self.sums[n] for n in names)), strict=True))
        tokens, padding = max(sums.pop("tokens"), 1.0), sums.pop("padding") / sums.pop("positions")
        per_step = {n: sums.pop(n) / self.steps for n in names if n.startswith(("grad_norm", "loss"))}
        mean = {n: v / tokens for n, v in sums.items()}
        largest = dict(zip(sorted(self.highest), self._highest_over(ranks), strict=True))
        logged = {
            "loss/policy_avg": per_step["loss_policy"],
            "policy/approxkl_avg": mean["approxkl"],
            "policy/clipfrac_avg": mean["clipfrac"],
            "clip_ratio/low_mean": mean["clipfrac_low"],
            "clip_ratio/high_mean": mean["clipfrac"] - mean["clipfrac_low"],
            "policy/entropy_avg": mean["entropy"],
            "policy/grad_norm": per_step["grad_norm"],
            "policy/updates": float(self.steps),
            "val/ratio": mean["ratio"],
            "val/ratio_var": max(mean["ratio_square"] - mean["ratio"] ** 2, 0.0),
            "val/ratio_max": largest["max_ratio"],
            "val/ratio_min": -largest["max_minus_ratio"],
            "val/ratio_first_gap": largest["max_first_gap"],
            "perf/padding": padding,
        }
        for name in ("kl", "pretraining"):
            if f"loss_{name}" in per_step:
                logged[f"loss/{name}_avg"] = per_step[f"loss_{name}"]
        logged |= {f"grad_norm/{n.removeprefix('grad_norm_')}": v for n, v in per_step.items() if "norm_" in n}
        if "value_clipfrac" in mean:
            logged |= {"loss/value_avg": per_step["loss_value"], "val/clipfrac_avg": mean["value_clipfrac"]}
        return logged

    def _highest_over(self, ranks: Ranks) -> list[float]:
        local = torch.stack([self.highest[name] for name in sorted(self.highest)])
        return ranks.gather(local).amax(0).tolist()


def of_policy(policy: PolicyLoss, entropy: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Sums over the tokens [B, T] of a micro-batch; ``loss_policy`` adds up to the loss of the minibatch."""
    count = policy.count
    return {
        "tokens": count,
        "loss_policy": policy.loss,
        "approxkl": policy.approx_kl * count,
        "clipfrac": policy.clip_fraction * count,
        "clipfrac_low": policy.clip_fraction_low * count,
        "entropy": masked_sum(entropy.detach(), mask),
        "ratio": policy.ratio_mean * count,
        "ratio_square": (policy.ratio_var + policy.ratio_mean**2) * count,
        "max_ratio": policy.ratio_max,
        "max_minus_ratio": -policy.ratio_min,
    }


def of_padding(rollout: Rollout) -> dict[str, Tensor]:
    """Positions of a micro-batch [B, S], and how many of them hold no token."""
    real = rollout.attention_mask
    return {"padding": (~real).sum(), "positions": torch.tensor(real.numel(), device=real.device)}


def of_value(value: ValueLoss) -> dict[str, Tensor]:
    """The same for the critic."""
    return {"loss_value": value.loss, "value_clipfrac": value.clip_fraction * value.count}


def moments(experience: Experience, ranks: Ranks, *, has_critic: bool) -> dict[str, float]:
    """Mean and deviation of what was learned from, and how much of the returns the critic explained. Collective."""
    e, mask = experience, experience.mask
    returns, advantages = ranks.moments(e.returns, mask), ranks.moments(e.advantages, mask)
    logged = {
        "advantages/mean": float(advantages.mean),
        "advantages/std": float(advantages.var) ** 0.5,
        "returns/mean": float(returns.mean),
        "returns/std": float(returns.var) ** 0.5,
    }
    if has_critic:
        values, residuals = ranks.moments(e.values, mask), ranks.moments(e.returns - e.values, mask)
        logged["values/mean"], logged["values/std"] = float(values.mean), float(values.var) ** 0.5
        logged["val/var_explained"] = float(explained_variance(returns, residuals))
    return logged
