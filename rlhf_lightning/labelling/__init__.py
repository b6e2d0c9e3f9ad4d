"""Answers sampled from a policy, and rankings made of them."""

from rlhf_lightning.labelling.ranking import ranking_rows
from rlhf_lightning.labelling.sampling import SamplingModule

__all__ = ["SamplingModule", "ranking_rows"]
