"""Combinations that are refused before a model is loaded, since they are invalid, and one that asks for hacking."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.aggregate import aggregation
from rlhf_lightning.functional.ratios import CORRECTIONS
from rlhf_lightning.models import ValueHead
from rlhf_lightning.modules.formulas import check_advantage, check_policy_loss
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.modules.resampling import check_draws
from rlhf_lightning.optim.kl_controllers import FixedKL, KLController
from rlhf_lightning.rollout import RolloutEngine, Sampling
from rlhf_lightning.rollout.engine import check_prompts
from rlhf_lightning.rollout.hf import warn_of_unused_fields
from rlhf_lightning.rules.ahead import check_ahead, check_ahead_engine, check_peek
from rlhf_lightning.rules.combinations import UNPENALISED, check_algorithm
from rlhf_lightning.rules.partials import called, takes, unwrapped
from rlhf_lightning.scoring import Scorer

log = logging.getLogger(__name__)


def check_parts(policy: Any, scorer: Any) -> None:
    """Refuse what a module that is made in Python is often given instead of its parts.

    Raises:
        ConfigError: a folder where a recipe belongs, or a function where a scorer does.
    """
    if isinstance(policy, (str, PurePath)):
        raise ConfigError(f"PPOModule: {str(policy)!r} is a folder: give Pretrained({str(policy)!r})")
    if callable(scorer) and not hasattr(scorer, "score"):
        raise ConfigError(f"PPOModule: the scorer is a function, wrap it: FunctionScorer({called(scorer)})")


def check_combination(
    settings: PPOSettings,
    sampling: Sampling,
    advantage: Callable[..., Any],
    policy_loss: Callable[..., Any],
    critic: Any = "policy",
) -> None:
    """Check what only makes sense together, and call the two functions on a few numbers.

    Args:
        settings: numbers of the algorithm.
        sampling: how answers are drawn.
        advantage: the advantage function, with or without arguments bound by ``functools.partial``.
        policy_loss: the same for the policy loss.
        critic: what the critic starts from.

    Raises:
        ConfigError: the combination cannot learn what it says it learns, or a function cannot be called as it will be.
    """
    sampling.require_scorable()
    check_ahead(settings)
    function, bound = unwrapped(advantage)
    made = unwrapped(critic)[0]
    head = isinstance(made, type) and issubclass(made, ValueHead)
    loss = _path(unwrapped(policy_loss)[0])
    check_algorithm(settings, _path(function), bound, loss, "shared_trunk" if head else critic)
    check_advantage(advantage, settings.group_size)
    if settings.bootstrap_truncated and "bootstrap" not in takes(advantage):
        raise ConfigError(
            f"ppo.settings.bootstrap_truncated: {called(advantage)} takes no `bootstrap`, the value after each "
            "truncated answer [B]; use algorithm=ppo, or add the argument"
        )
    correction = None if settings.correction is None else CORRECTIONS[settings.correction]
    check_policy_loss(policy_loss, aggregation(settings.aggregation, norm=sampling.max_new_tokens), correction)


def check_start(policy: Any, trainer: Any, settings: PPOSettings, sampling: Sampling) -> None:
    """Check what only model and data together show.

    Raises:
        ConfigError: the longest prompt leaves no room for an answer, or the loader cannot give the prompts that the
            settings ask for beside those of the step.
    """
    loader = trainer.train_dataloader
    check_draws(loader, settings.max_resamples)
    check_peek(type(loader).__name__, fit=not settings.sample_ahead or hasattr(loader, "peek"))
    longest = sampling.max_new_tokens + settings.bootstrap_truncated  # see `bootstrapping.one_token_longer`
    check_prompts(policy, getattr(trainer, "datamodule", None), replace(sampling, max_new_tokens=longest))
    warn_of_unused_fields(policy, sampling)


def penalty_of(controller: KLController, scorer: Scorer) -> KLController:
    """The controller, or none where it is for learned scores only and no model scores.

    Warns where a model scores and nothing keeps the policy near its reference.
    """
    learned = getattr(scorer, "learned", False)
    if getattr(controller, "learned_scores_only", False) and not learned:
        return FixedKL(0.0)
    if learned and isinstance(controller, FixedKL) and controller.coef == 0.0 and not rank_zero_only.rank:  # type: ignore[attr-defined]
        log.warning(UNPENALISED)
    return controller


def engine_for(settings: PPOSettings, engine: RolloutEngine) -> RolloutEngine:
    """The engine. Raises: ConfigError: rollouts are to be sampled ahead, and it cannot."""
    check_ahead_engine(type(engine).__name__, fit=not settings.sample_ahead or getattr(engine, "samples_ahead", False))
    return engine


def _path(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"
