"""Rows of files as batches: demonstrations, comparisons, feedback, prompts."""

from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.feedback import FeedbackData
from rlhf_lightning.data.loader import ShardedLoader
from rlhf_lightning.data.prompts import PromptData

__all__ = ["ComparisonData", "DemonstrationData", "FeedbackData", "PromptData", "ShardedLoader"]
