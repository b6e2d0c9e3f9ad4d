"""Combinations that are mathematically invalid, each refused with the reason before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.rules.combinations import check_algorithm


def check_combination(
    settings: PPOSettings,
    sampling: Sampling,
    advantage: Callable[..., Any],
    policy_loss: Callable[..., Any],
    critic: Any = "policy",
) -> None:
    """Check what only makes sense together; user-defined functions pass.

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
    function, bound = _unwrap(advantage)
    check_algorithm(settings, _path(function), bound, _path(_unwrap(policy_loss)[0]), critic)


def _unwrap(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function inside nested partials, and all keywords bound to it."""
    bound: dict[str, Any] = {}
    while isinstance(function, partial):
        bound = {**function.keywords, **bound}
        function = function.func
    return function, bound


def _path(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"
