"""Combinations that are mathematically void, each refused with the reason before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import advantage as advantages
from rlhf_lightning.functional.policy import reinforce_loss
from rlhf_lightning.modules.settings import PPOSettings
from rlhf_lightning.rollout import Sampling

_GROUPED = (advantages.rloo, advantages.grpo, advantages.dr_grpo)


def refuse_void(
    settings: PPOSettings,
    sampling: Sampling,
    advantage: Callable[..., Any],
    policy_loss: Callable[..., Any],
) -> None:
    """Check what only makes sense together; functions of one's own pass.

    Args:
        settings: numbers of the algorithm.
        sampling: how answers are drawn.
        advantage: the advantage function, with or without arguments bound by ``functools.partial``.
        policy_loss: the same for the policy loss.

    Raises:
        ConfigError: the combination cannot learn what it says it learns.
    """
    sampling.require_scorable()
    function, bound = _unwrap(advantage)
    has_critic = settings.baseline == "critic"
    _check_groups(settings, function, bound)
    _check_kl(settings)
    lam = bound.get("lam", 0.95)
    if function is advantages.gae and not has_critic and lam != 1:
        raise ConfigError(
            f"ppo.settings.baseline={settings.baseline} with advantage gae at lam={lam}: lambda mixes in a critic's "
            "values, and without a critic it only fades the score out; set ppo.advantage.lam=1.0 or baseline=critic"
        )
    if settings.critic_warmup and not has_critic:
        raise ConfigError(f"ppo.settings.critic_warmup={settings.critic_warmup}: there is no critic to warm up")
    if settings.ppo_epochs > 1 and _unwrap(policy_loss)[0] is reinforce_loss:
        raise ConfigError(
            f"ppo.settings.ppo_epochs={settings.ppo_epochs} with reinforce_loss: its gradient holds only for the "
            "policy that sampled, which it no longer is after one pass; set ppo_epochs=1 or use clipped_policy_loss"
        )


def _check_groups(settings: PPOSettings, function: Any, bound: dict[str, Any]) -> None:
    size, name = settings.group_size, getattr(function, "__name__", "?")
    if settings.max_resamples and size == 1:
        raise ConfigError("ppo.settings.max_resamples: a group of one always scores the same; raise group_size")
    if function not in _GROUPED:
        return
    if size == 1:
        raise ConfigError(
            f"ppo.settings.group_size=1 with advantage {name}: a response alone in its group is its own baseline, so "
            "every advantage is 0; set group_size to 2 or more"
        )
    if bound.get("group_size", size) != size:
        raise ConfigError(
            f"ppo.advantage.group_size={bound['group_size']} but ppo.settings.group_size={size}: they must agree"
        )
    if settings.baseline != "none":
        raise ConfigError(
            f"ppo.settings.baseline={settings.baseline} with advantage {name}: it compares responses with each other "
            "and never looks at another baseline; set baseline=none"
        )
    if function is advantages.grpo and settings.whiten_advantages:
        raise ConfigError(
            "ppo.settings.whiten_advantages=true with advantage grpo: each group is already standardised, and "
            "whitening again would rescale it by how the groups happened to turn out; set whiten_advantages=false"
        )


def _check_kl(settings: PPOSettings) -> None:
    if settings.kl_placement == "loss" and settings.kl_estimator == "k1":
        raise ConfigError(
            "ppo.settings.kl_placement=loss with kl_estimator=k1: the expected gradient of k1 as a loss is zero, so "
            "nothing would hold the policy near the reference; put it in the reward, or use k2 in the loss"
        )


def _unwrap(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function inside nested partials, and all keywords bound to it."""
    bound: dict[str, Any] = {}
    while isinstance(function, partial):
        bound = {**function.keywords, **bound}
        function = function.func
    return function, bound
