"""Real models and real texts, prepared once into verified folders. Nothing of them is part of this project."""

from rlhf_lightning.tasks.hh import prepare_hh
from rlhf_lightning.tasks.reviews import prepare_reviews
from rlhf_lightning.tasks.sentiment import ReviewGold, vader
from rlhf_lightning.tasks.smollm2 import prepare_smollm2

__all__ = ["ReviewGold", "prepare_hh", "prepare_reviews", "prepare_smollm2", "vader"]
