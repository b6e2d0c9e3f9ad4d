"""Lightning callbacks that show training, record it, and keep the best policy."""

from rlhf_lightning.callbacks.best_policy import BestPolicy
from rlhf_lightning.callbacks.history import History
from rlhf_lightning.callbacks.progress import ProgressLine
from rlhf_lightning.callbacks.score_monitor import ScoreMonitor
from rlhf_lightning.callbacks.tensorboard import TensorBoardExtras

__all__ = ["BestPolicy", "History", "ProgressLine", "ScoreMonitor", "TensorBoardExtras"]
