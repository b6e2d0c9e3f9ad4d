"""Stage `reward`: rankings to a reward model."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.modules.formulas import check_ranking_loss
from rlhf_lightning.stages.run import Run
from rlhf_lightning.stages.train import Metrics, train


def run_reward(run: Run) -> Metrics:
    """Fit and export the reward model with its score statistics; returns the last metrics."""
    return train(run, "reward", _loss(run), model="model", found=lambda module: module.held_out)


def check_reward(run: Run) -> None:
    """Call the ranking loss."""
    for loss in _loss(run).values():
        check_ranking_loss(loss)


def _loss(run: Run) -> dict[str, Any]:
    """The loss; none where it is null, for a module of the user that takes none."""
    loss = run.build(run.section("reward")["loss"])
    return {} if loss is None else {"ranking_loss": loss}
