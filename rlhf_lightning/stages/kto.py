"""Stage `kto`: answers called good or bad to a policy."""

from __future__ import annotations

from rlhf_lightning.stages.offline import train_offline
from rlhf_lightning.stages.run import Run


def run_kto(run: Run) -> dict[str, float]:
    """Learn from single answers and export the policy; returns the last metrics."""
    return train_offline(run, "kto", run.build(run.section("kto")["loss"]))
