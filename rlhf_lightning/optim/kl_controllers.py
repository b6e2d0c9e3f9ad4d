"""Choosing ``kl_coef`` (beta), the coefficient of the KL penalty, while training runs.

KL here is always **nats per response**: the mean over responses of the sum of log-ratios over their tokens. A target
copied from a library that averages over tokens is too small by the response length.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rlhf_lightning.errors import ConfigError, NumericalError
from rlhf_lightning.rules.ranges import require


@runtime_checkable
class KLController(Protocol):
    """What training asks of a controller. It holds Python numbers only and is fed with numbers equal on all ranks."""

    @property
    def coef(self) -> float:
        """Coefficient of the KL penalty, score per nat."""

    @property
    def target(self) -> float | None:
        """KL that the controller steers to, nats per response; None if it does not steer."""

    def update(self, kl: float, num_sequences: int) -> None:
        """Learn the KL measured on a rollout of ``num_sequences`` responses (all ranks together)."""

    def state_dict(self) -> dict[str, float]:
        """Numbers that a resumed run needs."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from what `state_dict` returned."""


def _checked(kl: float) -> float:
    if math.isnan(kl):
        raise NumericalError("kl: the measured KL is NaN; look at the log-probabilities of the last rollout")
    return kl


class FixedKL:
    """The same coefficient throughout; 0 means no KL penalty.

    >>> controller = FixedKL(0.1)
    >>> controller.update(kl=50.0, num_sequences=512)
    >>> controller.coef
    0.1
    """

    target = None

    def __init__(self, coef: float = 0.1) -> None:
        require("kl.coef", coef, at_least=0, at_most=1e9)
        self.coef = coef

    def update(self, kl: float, num_sequences: int) -> None:
        """Nothing to learn; a KL that is NaN is still an error."""
        _checked(kl)

    def state_dict(self) -> dict[str, float]:
        """Nothing changes, so nothing is saved."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Nothing to restore: the configured coefficient holds, also one changed between runs."""


class _Steering:
    """A beta between a floor and a ceiling."""

    coef: float
    min_coef: float
    max_coef: float

    def _move(self, coef: float) -> None:
        """Set beta; warn where the controller can do no more (Python shows each such line once)."""
        self.coef = min(max(coef, self.min_coef), self.max_coef)
        if self.coef >= self.max_coef:
            warnings.warn(
                f"kl: kl_coef is at its ceiling of {self.max_coef:.3g} and KL is still above its target: the policy is "
                "running away; lower the learning rate",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, float]:
        """``{"coef": beta}``, and what else the controller has learned."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue at the saved beta, within the bounds of this configuration."""
        self.coef = min(max(float(state["coef"]), self.min_coef), self.max_coef)


@dataclass(eq=False)
class AdaptiveKL(_Steering):
    """The proportional controller of Ziegler et al. 2019, section 2.2.

        beta <- beta * (1 + clip(kl / target - 1, -clip, clip) * num_sequences / horizon)

    Slow by design: with 512 responses and a horizon of 10000, beta changes by 1 % a rollout at most. On small models it
    falls for as long as KL is still small and then cannot catch up; `LogSpaceKL` is built for that.

    Args:
        init_coef: beta of the first rollout.
        target: nats per response.
        horizon: responses it takes to change beta by a factor of about e^clip.
        clip: largest relative error that counts.
        min_coef: floor of beta.
        max_coef: ceiling of beta.

    >>> controller = AdaptiveKL(init_coef=1.0, target=6.0, horizon=100)
    >>> controller.update(kl=12.0, num_sequences=50)  # 1 + 0.2 * 50 / 100
    >>> controller.coef
    1.1
    """

    init_coef: float = 0.15
    target: float = 6.0
    horizon: float = 10000
    clip: float = 0.2
    min_coef: float = 0.0
    max_coef: float = 1000.0

    def __post_init__(self) -> None:
        require("kl.init_coef", self.init_coef, above=0, why="0 can never grow")
        require("kl.target", self.target, above=0, why="nats per response")
        require("kl.horizon", self.horizon, above=0, why="responses")
        require("kl.clip", self.clip, above=0, at_most=1)
        if not 0 <= self.min_coef <= self.init_coef <= self.max_coef:
            bounds = f"{self.min_coef}, {self.init_coef}, {self.max_coef}"
            raise ConfigError(f"kl: need 0 <= min_coef <= init_coef <= max_coef, not {bounds}")
        self.coef = self.init_coef

    def update(self, kl: float, num_sequences: int) -> None:
        """Raise beta when ``kl`` (nats per response) is above the target, lower it when below."""
        error = min(max(_checked(kl) / self.target - 1, -self.clip), self.clip)
        # a rollout much larger than the horizon must not bring beta to 0, from where no factor leads back
        factor = max(1 + error * num_sequences / self.horizon, 0.1)
        self._move(self.coef * factor)


@dataclass(eq=False)
class LogSpaceKL(_Steering):
    """Steers log beta by the logarithmic error, faster upwards than downwards. The default.

        e_t      = clip(log(kl_t / target), -1, 2)
        log beta <- log beta + clip(change_gain * (e_t - e_{t-1}) + gain * e_t, -max_step, max_step)
        gain     = raise_gain if e_t > 0 else lower_gain

    The first term answers a rising KL before it reaches the target; the second removes what error is left. Early in
    training KL is low whatever beta is: the error is clipped at -1, lowering is slow and stops at the floor, so that
    beta stays within reach of what is needed once the policy moves. The step does not depend on the number of
    responses: one rollout, one update.

    Args:
        init_coef: beta of the first rollout.
        target: nats per response.
        change_gain: answer to a change of the error (log beta per log KL).
        raise_gain: answer to KL above the target, per rollout.
        lower_gain: answer to KL below the target, per rollout.
        max_step: largest change of log beta per rollout; 0.5 is a factor of 1.65.
        floor: lowest beta as a multiple of ``init_coef``.
        ceiling: highest beta as a multiple of ``init_coef``.
        learned_scores_only: charge nothing where no model scores, as recipes for verifiable rewards do.

    >>> controller = LogSpaceKL(init_coef=1.0, target=6.0, raise_gain=0.3)
    >>> controller.update(kl=6.0 * math.e, num_sequences=512)  # error 1, no change known yet: e^0.3
    >>> round(controller.coef, 4)
    1.3499
    """

    init_coef: float = 0.15
    target: float = 6.0
    change_gain: float = 0.7
    raise_gain: float = 0.3
    lower_gain: float = 0.03
    max_step: float = 0.5
    floor: float = 0.1
    ceiling: float = 1000.0
    learned_scores_only: bool = False

    def __post_init__(self) -> None:
        require("kl.init_coef", self.init_coef, above=0, at_most=1e9)
        require("kl.target", self.target, above=0, why="nats per response")
        require("kl.change_gain", self.change_gain, at_least=0)
        require("kl.raise_gain", self.raise_gain, above=0)
        require("kl.lower_gain", self.lower_gain, above=0)
        require("kl.max_step", self.max_step, above=0)
        require("kl.floor", self.floor, above=0, at_most=1)
        require("kl.ceiling", self.ceiling, at_least=1)
        self.coef = self.init_coef
        self.min_coef, self.max_coef = self.floor * self.init_coef, self.ceiling * self.init_coef
        self._last_error: float | None = None

    def update(self, kl: float, num_sequences: int) -> None:
        """Raise beta when ``kl`` (nats per response) is above the target or rising to it; below 0 counts as low."""
        error = math.log(min(max(_checked(kl) / self.target, math.exp(-1)), math.exp(2)))
        change = 0.0 if self._last_error is None else error - self._last_error
        self._last_error = error
        step = self.change_gain * change + (self.raise_gain if error > 0 else self.lower_gain) * error
        self._move(self.coef * math.exp(min(max(step, -self.max_step), self.max_step)))

    def state_dict(self) -> dict[str, float]:
        """``{"coef": beta}`` and, after the first update, ``"last_error"``."""
        return super().state_dict() | ({} if self._last_error is None else {"last_error": self._last_error})

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue at the saved beta and error."""
        super().load_state_dict(state)
        self._last_error = float(state["last_error"]) if "last_error" in state else None
