"""Stage `kto`: answers called good or bad to a policy."""

from __future__ import annotations

from rlhf_lightning.modules.formulas import check_answer_loss
from rlhf_lightning.stages.run import Run
from rlhf_lightning.stages.train import Metrics, train


def run_kto(run: Run) -> Metrics:
    """Learn from single answers and export the policy; returns the last metrics."""
    return train(run, "kto", {"loss": run.build(run.section("kto")["loss"])})


def check_kto(run: Run) -> None:
    """Call the loss."""
    check_answer_loss(run.build(run.section("kto")["loss"]))
