"""Learning-rate schedules as partial functions, ours and those of torch and transformers: ``scheduler(optimizer)``,
with the number of steps under the name by which each takes it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rules.partials import called, takes, unwrapped
from rlhf_lightning.rules.ranges import require

LENGTHS = ("total_steps", "num_training_steps", "T_max", "total_iters")
"""How schedules call the optimizer steps of the whole run."""
TRIAL_STEPS = 1009
"""Length of a run for which a schedule is tried; a prime, so that no share of it is a whole number of steps."""


def make_schedule(factory: Callable[..., Any], optimizer: Optimizer, total_steps: int, key: str = "scheduler") -> Any:
    """Call a schedule with the optimizer and, unless it is bound already, with its length, if it takes one.

    Args:
        factory: a class or function, with or without arguments bound by ``functools.partial``.
        optimizer: given by position.
        total_steps: optimizer steps of the whole run.
        key: where it is set, for messages.

    Raises:
        ConfigError: it does not take what is bound, lacks something, or waits for a metric.

    >>> sgd = torch.optim.SGD([torch.ones(1)], lr=1.0)
    >>> make_schedule(torch.optim.lr_scheduler.CosineAnnealingLR, sgd, 8).T_max
    8
    """
    name, bound = called(factory), unwrapped(factory)[1]
    length = next((word for word in LENGTHS if word in takes(factory)), None)
    given = {} if length is None or bound.get(length) is not None else {length: total_steps}
    try:
        schedule = factory(optimizer, **given)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{key}: {name} cannot be made ({type(error).__name__}: {error}); arguments are added as +{key}.NAME=VALUE"
        ) from error
    if not callable(getattr(schedule, "step", None)):
        raise ConfigError(f"{key}: {name} returned a {type(schedule).__name__}; wanted: a schedule of torch")
    if isinstance(schedule, ReduceLROnPlateau):
        raise ConfigError(f"{key}: {name} waits for a metric, and a step has none; choose one that counts steps")
    return schedule


def check_schedule(factory: Callable[..., Any] | None, optimizer: Callable[..., Optimizer], key: str) -> None:
    """Build an optimizer of one parameter and its schedule, so that mistakes are known before a model is loaded.

    Args:
        factory: as for `make_schedule`; None keeps the learning rate.
        optimizer: called with one parameter group.
        key: where the schedule is set; the optimizer is named beside it.

    Raises:
        ConfigError: the schedule or the optimizer cannot be made, or a learning rate is not finite.
    """
    where = f"{key.rpartition('.')[0]}.optimizer".lstrip(".")
    group = {"name": "policy", "params": [torch.nn.Parameter(torch.zeros(2, 2))]}
    try:
        made = optimizer([group])
    except ConfigError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{where}: {called(optimizer)} cannot be called with parameter groups: {told}") from error
    if not isinstance(made, Optimizer):
        raise ConfigError(f"{where}: {called(optimizer)} returned a {type(made).__name__}; wanted: a torch Optimizer")
    if factory is None:
        return
    schedule = make_schedule(factory, made, total_steps=TRIAL_STEPS, key=key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimizer comes before
        schedule.step()
    rates = [float(one["lr"]) for one in made.param_groups]
    if not all(map(math.isfinite, rates)):
        raise ConfigError(f"{key}: {called(factory)} gives the learning rate {rates[0]} after the first step")


def linear(optimizer: Optimizer, total_steps: int, *, warmup_ratio: float = 0.0, final: float = 0.0) -> LambdaLR:
    """Rise linearly from 0 over the first steps, then fall linearly to ``final``.

    Args:
        optimizer: its learning rates are the peak.
        total_steps: optimizer steps of the whole run.
        warmup_ratio: share of the steps spent rising.
        final: learning rate at the end, as a share of the peak.
    """
    require("warmup_ratio", warmup_ratio, at_least=0, at_most=1)
    require("final", final, at_least=0)
    return LambdaLR(
        optimizer,
        lambda step: (
            _warmup(step, total_steps, warmup_ratio) * (1 - (1 - final) * _done(step, total_steps, warmup_ratio))
        ),
    )


def cosine(optimizer: Optimizer, total_steps: int, *, warmup_ratio: float = 0.0, final: float = 0.0) -> LambdaLR:
    """Rise linearly, then fall along half a cosine to ``final``; arguments as for `linear`."""
    require("warmup_ratio", warmup_ratio, at_least=0, at_most=1)
    require("final", final, at_least=0)

    def factor(step: int) -> float:
        fall = 0.5 * (1 + math.cos(math.pi * _done(step, total_steps, warmup_ratio)))
        return _warmup(step, total_steps, warmup_ratio) * (final + (1 - final) * fall)

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total_steps: int, *, warmup_ratio: float = 0.0) -> LambdaLR:
    """Rise linearly, then stay; arguments as for `linear`."""
    require("warmup_ratio", warmup_ratio, at_least=0, at_most=1)
    return LambdaLR(optimizer, lambda step: _warmup(step, total_steps, warmup_ratio))


def _warmup(step: int, total_steps: int, ratio: float) -> float:
    steps = ratio * total_steps
    return min(1.0, (step + 1) / steps) if steps >= 1 else 1.0


def _done(step: int, total_steps: int, ratio: float) -> float:
    """Share of the falling part that lies behind, in [0, 1]."""
    start = ratio * total_steps
    return min(1.0, max(0.0, (step - start) / max(total_steps - start, 1)))
