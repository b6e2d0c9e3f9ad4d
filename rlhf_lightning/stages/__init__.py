"""The stages of a run, each a function from the run to the metrics it ends with."""

from rlhf_lightning.stages.run import Run
from rlhf_lightning.stages.train import train

__all__ = ["Run", "train"]
