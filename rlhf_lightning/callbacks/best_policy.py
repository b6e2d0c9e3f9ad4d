"""Keep the policy that scores best among those that stayed near the reference."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from rlhf_lightning.callbacks.progress import why_early
from rlhf_lightning.callbacks.steps import gave_up, logged_scalars, steps_done, steps_planned, unpenalised_limit
from rlhf_lightning.checkpoint.nonfinite import first_nonfinite
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.adapters import learned_state
from rlhf_lightning.models.sharding import sharded_as
from rlhf_lightning.rules.ranges import require

KL, KL_TARGET = "objective/kl", "objective/kl_target"
TARGET_SLACK = 1.2  # without `max_kl`, this many controller targets are allowed


class BestPolicy(pl.Callback):
    """Copies the policy's weights whenever its smoothed score is the best so far and its KL is allowed.

    Score and KL are means over the last ``window`` rollouts, so that one lucky rollout does not win; nothing is
    compared before a window is full (a fit shorter than the window counts as one window). While KL rises its mean
    lags behind, so the last rollout's own KL must be allowed too. The copy is taken when a rollout's update is done:
    it is one update newer than the score. It lies on the CPU, of sharded weights each rank's own, and travels with
    the checkpoint, so a resumed fit keeps it.

    When training ends well the best weights go into ``pl_module.policy`` (``restore_best``) and, if ``folder`` is
    given, ``pl_module.export(folder, provenance)`` writes them with the rollout, score and KL that won.

    Args:
        folder: where the best policy is written at the end; None writes nothing.
        monitor: logged tag to maximise, equal on every rank; ``judge`` is the first ``monitor/...`` that `ScoreMonitor`
            logs. A judge that chooses is no longer independent of what it will be asked about.
        max_kl: highest ``objective/kl``, of the mean and of the last rollout, nats per response; None takes 1.2 x
            ``objective/kl_target`` if that is logged, 3.5 where a learned model scores and nothing charges for KL, else
            there is no limit.
        window: rollouts in a mean.
        every_n_rollouts: compare (and maybe copy) only every so many rollouts.
        restore_best: leave the module with the best weights rather than the last ones.

    Attributes:
        best: ``{"rollout", "score", "kl"}`` of the winner (rollouts count from 1), or None.

    Raises:
        ConfigError: ``window`` or ``every_n_rollouts`` below 1, or the module does not log ``monitor`` or
            ``objective/kl`` in its ``training_step``.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        monitor: str = "objective/scores",
        max_kl: float | None = None,
        window: int = 5,
        every_n_rollouts: int = 1,
        restore_best: bool = True,
    ) -> None:
        require("window", window, at_least=1)
        require("every_n_rollouts", every_n_rollouts, at_least=1)
        require("max_kl", max_kl, above=0)
        self.folder = None if folder is None else Path(folder)
        self.monitor = monitor
        self.max_kl = max_kl
        self.window = window
        self.every_n_rollouts = every_n_rollouts
        self.restore_best = restore_best
        self.best: dict[str, float] | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=window)
        self._weights: dict[str, Any] = {}
        self._full = window

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._full = min(self.window, steps_planned(trainer) or self.window)
        if self._weights:  # of a checkpoint
            policy: Any = pl_module.policy
            self._weights = _copy(sharded_as(self._weights, policy.state_dict()))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if gave_up(pl_module):
            return
        metrics = logged_scalars(trainer)
        if self.monitor == "judge":
            self.monitor = min((tag for tag in metrics if tag.startswith("monitor/")), default="judge")
        missing = [tag for tag in (self.monitor, KL) if tag not in metrics]
        if missing:
            raise ConfigError(
                f"BestPolicy: the module does not log {missing[0]!r}; choose another `monitor` or drop the callback"
            )
        self._recent.append((metrics[self.monitor], metrics[KL]))
        rollout = steps_done(trainer)
        if len(self._recent) < self._full or rollout % self.every_n_rollouts:
            return
        score, kl = (math.fsum(column) / len(self._recent) for column in zip(*self._recent, strict=True))
        policy: Any = pl_module.policy
        limit = self._limit(metrics, unpenalised_limit(pl_module))
        allowed = math.isfinite(score) and math.isfinite(kl) and max(kl, self._recent[-1][1]) <= limit
        better = allowed and (self.best is None or score > self.best["score"])
        wins = better and first_nonfinite(policy.named_parameters()) is None
        if trainer.strategy.broadcast(wins):  # rank 0 decides for all
            self.best = {"rollout": rollout, "score": score, "kl": kl}
            self._weights = _copy(learned_state(policy))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.best is None:
            kept = "the last policy is kept" + f", and {self.folder} is not written" * (self.folder is not None)
            rank_zero_warn(f"BestPolicy: {self._why_none(trainer)}; {kept}")
            return
        best = self.best
        rank_zero_info(
            f"best policy: rollout {best['rollout']}, {self.monitor} {best['score']:.4g}, "
            f"KL {best['kl']:.3g} nats per response"
        )
        policy: Any = pl_module.policy
        last = None if self.restore_best else _copy(learned_state(policy))
        policy.load_state_dict(policy.state_dict() | self._weights)
        if self.folder is not None:
            pl_module.export(self.folder, {"stage": "ppo", "metrics": {f"best/{k}": v for k, v in best.items()}})  # type: ignore[operator]
        if last is not None:
            policy.load_state_dict(policy.state_dict() | last)

    def _why_none(self, trainer: pl.Trainer) -> str:
        """Why no policy has won."""
        done, made = steps_done(trainer), len(self._recent)
        if made < self._full:
            return f"the fit ended after {made} of the {self._full} rollouts of a mean (window): {why_early(trainer)}"
        if done - done % self.every_n_rollouts < self._full:
            return f"none of the {done} rollouts was compared (every_n_rollouts={self.every_n_rollouts})"
        return f"no {self._full} rollouts in a row stayed within the KL limit"

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "recent": [list(pair) for pair in self._recent],
            "weights": self._weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        self._recent.extend((score, kl) for score, kl in state_dict["recent"])
        self._weights = _copy(state_dict["weights"])

    def _limit(self, metrics: dict[str, float], without_penalty: float | None) -> float:
        if self.max_kl is not None:
            return self.max_kl
        target = metrics.get(KL_TARGET, math.nan)
        return TARGET_SLACK * target if math.isfinite(target) and target > 0 else without_penalty or math.inf


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }
