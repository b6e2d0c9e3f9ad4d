"""Combinations that are mathematically void, each refused with the reason before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.rules.combinations import check_algorithm
from rlhf_lightning.rules.partials import unwrapped


def refuse_void(
    settings: PPOSettings,
    sampling: Sampling,
    advantage: Callable[..., Any],
    policy_loss: Callable[..., Any],
    critic: Any = "policy",
) -> None:
    """Check what only makes sense together; functions of one's own pass.

    Args:
        settings: numbers of the algorithm.
        sampling: how answers are drawn.
        advantage: the advantage function, with or without arguments bound by ``functools.partial``.
        policy_loss: the same for the policy loss.
        critic: what the critic starts from.

    Raises:
        ConfigError: the combination cannot learn what it says it learns.
    """
    sampling.require_scorable()
    function, bound = unwrapped(advantage)
    check_algorithm(settings, _path(function), bound, _path(unwrapped(policy_loss)[0]), critic)


def _path(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"
