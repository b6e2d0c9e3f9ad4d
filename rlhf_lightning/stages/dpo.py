"""Stage `dpo`: comparisons to a policy, with the loss of the group `loss`."""

from __future__ import annotations

from rlhf_lightning.stages.offline import train_offline
from rlhf_lightning.stages.run import Run


def run_dpo(run: Run) -> dict[str, float]:
    """Learn from comparisons and export the policy; returns the last metrics."""
    return train_offline(run, "dpo", run.build(run.config["loss"]))
