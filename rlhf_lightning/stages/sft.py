"""Stage `sft`: demonstrations to the reference policy."""

from __future__ import annotations

from rlhf_lightning.stages.run import Run
from rlhf_lightning.stages.train import Metrics, train


def run_sft(run: Run) -> Metrics:
    """Fine-tune and export; returns the last metrics."""
    return train(run, "sft")
