"""RLHF as PyTorch Lightning modules composed by Hydra: supervised fine-tuning, a reward model, and PPO.

The names below are imported when they are asked for, so that ``import rlhf_lightning`` costs nothing.

>>> from rlhf_lightning import Sampling
>>> Sampling(max_new_tokens=8).temperature
1.0
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "modules": ("DPOModule", "KTOModule", "PPOModule", "RewardModule", "SFTModule"),
    "modules.ppo_settings": ("PPOSettings",),
    "models": ("Pretrained", "ScalarModel", "ValueHead"),
    "data": ("ComparisonData", "DemonstrationData", "FeedbackData", "PromptData"),
    "optim.kl_controllers": ("AdaptiveKL", "FixedKL", "LogSpaceKL"),
    "rollout": ("ContinuousEngine", "EnvironmentEngine", "HFGenerateEngine", "LoopEngine", "RolloutEngine", "Sampling"),
    "scoring": ("EnsembleScorer", "FunctionScorer", "RewardModelScorer", "RewardSources", "Scorer"),
    "callbacks": ("BestPolicy", "DurableCheckpoint", "History", "RewardHackingGuard", "ScoreMonitor"),
    "checkpoint.io": ("DurableCheckpointIO",),
    "types": ("Experience", "Rollout"),
    "config.compose": ("compose",),
    "stages.pipeline": ("run",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [*_HOME_OF, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
