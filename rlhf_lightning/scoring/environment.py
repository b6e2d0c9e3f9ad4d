"""The reward that an environment gives, as a reward function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def environment_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    environment_reward: Sequence[float | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """What ``reward()`` of each response's environment returned; None abstains.

    Raises:
        ValueError: no environment has a reward.
    """
    if environment_reward is None:
        raise ValueError("found no reward: use rollout=environment, and an environment that has reward() -> float")
    return list(environment_reward)
