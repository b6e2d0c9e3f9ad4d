"""The reward function of GRPO and RLOO on both sides: it costs nothing and differs between answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def brevity(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Answers of 80 characters score best.

    >>> brevity(["a"], ["x" * 60])
    [-0.25]
    """
    return [-abs(len(completion) - 80) / 80 for completion in completions]
