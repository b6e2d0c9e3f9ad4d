"""From rollouts to scores: reward models, Python functions, and sums and ensembles of them behind one contract."""

from rlhf_lightning.scoring.ensemble import EnsembleScorer
from rlhf_lightning.scoring.functions import FunctionScorer
from rlhf_lightning.scoring.reward_model import RewardModelScorer
from rlhf_lightning.scoring.scorer import Scorer, completion_texts, details_of, place, state_of
from rlhf_lightning.scoring.sources import RewardSources, Source

__all__ = [
    "EnsembleScorer",
    "FunctionScorer",
    "RewardModelScorer",
    "RewardSources",
    "Scorer",
    "Source",
    "completion_texts",
    "details_of",
    "place",
    "state_of",
]
