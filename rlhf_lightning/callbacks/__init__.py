"""Lightning callbacks that show training, record it, keep the best policy, and guard against reward hacking."""

from rlhf_lightning.callbacks.best_policy import BestPolicy
from rlhf_lightning.callbacks.checkpoint import DurableCheckpoint
from rlhf_lightning.callbacks.guard import RewardHackingGuard
from rlhf_lightning.callbacks.history import History
from rlhf_lightning.callbacks.pretraining import PretrainingMix
from rlhf_lightning.callbacks.progress import ProgressLine
from rlhf_lightning.callbacks.record import RecordRollouts
from rlhf_lightning.callbacks.samples import Samples
from rlhf_lightning.callbacks.score_monitor import ScoreMonitor
from rlhf_lightning.callbacks.stop import StopAtBoundary
from rlhf_lightning.callbacks.stop_early import StopEarly
from rlhf_lightning.callbacks.tensorboard import TensorBoardExtras
from rlhf_lightning.callbacks.validate_first import ValidateFirst

__all__ = [
    "BestPolicy",
    "DurableCheckpoint",
    "History",
    "PretrainingMix",
    "ProgressLine",
    "RecordRollouts",
    "RewardHackingGuard",
    "Samples",
    "ScoreMonitor",
    "StopAtBoundary",
    "StopEarly",
    "TensorBoardExtras",
    "ValidateFirst",
]
