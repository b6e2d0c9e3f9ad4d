"""Which numbers a knob may have: stated once, in the constructor or function that takes it.

`rlhf_lightning.config.signatures` finds the calls of `require` in the source, so that a command line is judged by the
same lines before torch is imported.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from rlhf_lightning.errors import ConfigError

FLOAT32_MAX = 3.4e38  # a larger number is infinite as a tensor


def require(
    name: str,
    value: float | None,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    whole: bool = False,
    why: str = "",
) -> None:
    """Refuse a number out of its range. None passes, since it switches a knob off; NaN lies in no range.

    Args:
        name: the knob, as in the config.
        value: what it was set to; a number of NumPy or torch is one, too, and so is a tensor without dimensions.
        above: lower bound that is not allowed itself.
        at_least: lower bound that is allowed.
        below: upper bound that is not allowed itself.
        at_most: upper bound that is allowed.
        whole: whether it has to be an integer, and no bool; of what a config holds the annotation says so, too.
        why: what the bound is there for, put behind it.

    Raises:
        ConfigError: names the knob, the value and the range; text and arrays are in none.

    >>> require("gamma", 1.5, at_least=0, at_most=1)
    Traceback (most recent call last):
        ...
    rlhf_lightning.errors.ConfigError: gamma=1.5: must be at least 0 and at most 1
    """
    if value is None:
        return
    number: Any = value
    if getattr(number, "ndim", None) == 0:  # of NumPy or torch
        number = number.item()
    real = isinstance(number, Real)
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    holds = real and (
        (above is None or number > above)
        and (at_least is None or number >= at_least)
        and (below is None or number < below)
        and (at_most is None or number <= at_most)
    )
    wrong = whole and (not isinstance(number, Integral) or isinstance(number, bool))
    if wrong or not holds:
        kind = "a whole number" if wrong else "" if real else "a number"
        ranges = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        shown = number if real else f"{number!r:.60}"
        listed = ", ".join(filter(None, (kind, ranges)))
        raise ConfigError(f"{name}={shown}: must be {listed}{': ' * bool(why)}{why}")
