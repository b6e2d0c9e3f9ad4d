"""Learning-rate schedules as partial functions: ``scheduler(optimizer, total_steps=...)``."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rlhf_lightning.rules.ranges import require


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
