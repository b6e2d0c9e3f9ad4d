"""Watch a second opinion while PPO learns from the first."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from rlhf_lightning.callbacks.steps import gave_up
from rlhf_lightning.functional.kl import totals
from rlhf_lightning.scoring import Scorer, place
from rlhf_lightning.types import Rollout


class ScoreMonitor(pl.Callback):
    """Logs ``monitor/<name>``, the mean score another scorer gives to the rollout that was just learned from, over the
    answers it judges.

    Nothing learns from it. A monitor that falls while ``objective/scores`` rises is the sign of reward hacking
    (Gao et al. 2022, arXiv:2210.10760).

    Args:
        scorer: for example the judge that ranked the answers.
        every_n_rollouts: score only every so many rollouts.
    """

    def __init__(self, scorer: Scorer, every_n_rollouts: int = 1) -> None:
        self.scorer = scorer
        self.every_n_rollouts = every_n_rollouts

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        place(self.scorer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.rollouts % self.every_n_rollouts or gave_up(pl_module):
            return
        rollout = pl_module.last_experience.rollout
        judged = judged_scores(self.scorer, rollout, pl_module.tokenizer)
        total, count = pl_module.ranks.sum(judged.sum(), len(judged))
        if count:
            pl_module.log(f"monitor/{self.scorer.name}", total / count)


def judged_scores(scorer: Scorer, rollout: Rollout, tokenizer: Any) -> Tensor:
    """Scores of the answers that the scorer judged, float64."""
    scores = totals(scorer.score(rollout, tokenizer), rollout.mask).double()
    return scores[~scores.isnan()]
