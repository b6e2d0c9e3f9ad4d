"""From rollouts to scores: reward models and Python functions behind one contract."""

from rlhf_lightning.scoring.functions import FunctionScorer
from rlhf_lightning.scoring.reward_model import RewardModelScorer
from rlhf_lightning.scoring.scorer import Scorer, completion_texts

__all__ = ["FunctionScorer", "RewardModelScorer", "Scorer", "completion_texts"]
