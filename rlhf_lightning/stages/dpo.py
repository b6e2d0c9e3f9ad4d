"""Stage `dpo`: comparisons to a policy, with the loss of the group `loss`."""

from __future__ import annotations

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.formulas import check_pair_loss
from rlhf_lightning.rules.combinations import NOTHING_TO_CACHE
from rlhf_lightning.rules.partials import called
from rlhf_lightning.stages.run import Run
from rlhf_lightning.stages.train import Metrics, train


def run_dpo(run: Run) -> Metrics:
    """Learn from comparisons and export the policy; returns the last metrics."""
    return train(run, "dpo", {"loss": run.build(run.section("dpo")["loss"])})


def check_dpo(run: Run) -> None:
    """Call the loss, and see that a reference is wanted where one is named."""
    section = run.section("dpo")
    loss = run.build(section["loss"])
    if check_pair_loss(loss):
        return
    if section["reference"]:
        raise ConfigError(
            f"dpo.reference is set, but {called(loss)} compares answers without a reference; set it to null"
        )
    if section["cache_reference"]:
        raise ConfigError(NOTHING_TO_CACHE.format("dpo"))
