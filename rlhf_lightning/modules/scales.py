"""In which units a run's scores and values are, measured, so that no setting depends on them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rlhf_lightning.training.ranks import Ranks

MEMORY = 0.9  # share of the variance that a rollout leaves as it was
LEAST_SLOPE = 0.1  # of the largest that the spread of the returns allows
POOR, PATIENCE = -0.5, 5  # explained variance, and rollouts in a row
POOR_CRITIC = (
    f"ppo: val/var_explained was below {POOR} in {PATIENCE} rollouts: the critic predicts the returns worse than their "
    "mean would, so advantages are mostly its error. Lower ppo.settings.critic_lr, raise ppo.settings.critic_warmup "
    "(with ppo.critic=policy), or use algorithm=rloo, which needs no critic"
)


class ScoreScale:
    """The standard deviation of the scores, over the last ten rollouts or so."""

    def __init__(self) -> None:
        self.std: float | None = None

    def update(self, scores: Tensor, ranks: Ranks) -> float:
        """Take the scores [B] of a rollout in, those that are numbers; returns the deviation now. Collective."""
        moments = ranks.moments(scores.nan_to_num(0.0, 0.0, 0.0), scores.isfinite())
        if moments.count > 0:
            variance = float(moments.var)
            known = variance if self.std is None else self.std**2
            self.std = (MEMORY * known + (1 - MEMORY) * variance) ** 0.5
        return self.std or 0.0


class ValueScale:
    """From the critic's numbers to returns: ``shift + scale * number``, fixed at the first rollout.

    A critic that starts at 0, or from a reward model with another zero and another unit, would be wrong by the same
    amount everywhere; with lambda below 1 and whitened advantages that makes early and late tokens look good or bad.
    Its error is counted in ``unit``, the deviation of the first returns, so that neither the size of its gradient nor
    ``value_clip_range`` depends on the scores.
    """

    def __init__(self) -> None:
        self.shift, self.scale, self.unit, self.is_fitted = 0.0, 1.0, 1.0, False
        self.poor = 0  # rollouts in a row

    def __call__(self, numbers: Tensor) -> Tensor:
        """Values of the numbers that the critic gives, of the same shape."""
        return self.shift + self.scale * numbers if self.is_fitted else numbers

    def fit(self, numbers: Tensor, returns: Tensor, mask: Tensor, ranks: Ranks) -> None:
        """Take the mean and the slope that explain the returns best, all [B, T]. Collective.

        A critic that says the same everywhere gets the unit as its slope. One that says nothing about the returns keeps
        a tenth of it, so that it can learn. Numbers that are not finite leave it as it is.
        """
        y, x = ranks.moments(returns, mask), ranks.moments(numbers, mask)
        if not (y.var + x.var).isfinite():
            return  # this rollout will be given up
        spread = torch.stack([y.var, x.var]).sqrt()
        unit, width = (float(s) for s in spread)
        self.unit = unit or 1.0
        if width > 1e-6 * max(abs(float(x.mean)), 1e-6):
            together = ranks.moments((returns - y.mean) * (numbers - x.mean), mask).mean
            steepest = self.unit / width
            self.scale = min(max(float(together / x.var), LEAST_SLOPE * steepest), steepest)
        else:
            self.scale = self.unit
        self.shift = float(y.mean) - self.scale * float(x.mean)
        self.is_fitted = True

    def watch(self, explained: float | None) -> None:
        """Take in the variance that the critic explained in a rollout, None without one; warn where it stays poor."""
        self.poor = self.poor + 1 if explained is not None and explained < POOR else 0
        if self.poor == PATIENCE:
            rank_zero_warn(POOR_CRITIC)

    def state_dict(self) -> dict[str, float]:
        """Plain data for a checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue with what `state_dict` returned."""
        vars(self).update(state)
