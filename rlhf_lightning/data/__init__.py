"""Rows of files as batches: demonstrations, comparisons, feedback, prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lightning.data.comparisons import ComparisonData
    from rlhf_lightning.data.demonstrations import DemonstrationData
    from rlhf_lightning.data.feedback import FeedbackData
    from rlhf_lightning.data.loader import ShardedLoader
    from rlhf_lightning.data.prompts import PromptData

__all__ = ["ComparisonData", "DemonstrationData", "FeedbackData", "PromptData", "ShardedLoader"]


def __getattr__(name: str) -> Any:
    """Import the data modules when one is asked for: reading and checking rows needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlhf_lightning.data import comparisons, demonstrations, feedback, loader, prompts

    return next(vars(m)[name] for m in (comparisons, demonstrations, feedback, prompts, loader) if name in vars(m))
