"""What a reward function returned, sample by sample: scores, and what is wrong with the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rules.ranges import FLOAT32_MAX
from rlhf_lightning.scoring.isolation.process import CallFailed

Checked = list[float | list[float] | str]
"""For each sample a number, a list of one per token, or a text that says why it is neither."""


def checked(returned: Any, count: int, lengths: Sequence[int] | None, abstain_value: float) -> Checked:
    """The scores on ``count`` samples.

    Args:
        returned: as `worker.plain` writes it.
        count: samples the function was called with.
        lengths: tokens of each answer; None if they are not known.
        abstain_value: what None stands for.

    Raises:
        CallFailed: it is not one score per sample.

    >>> checked([1, None, float("nan")], 3, None, 0.0)
    [1.0, 0.0, 'returned nan where a finite number is needed, or None to abstain']
    """
    if not isinstance(returned, list) or len(returned) != count:
        what = f"{len(returned)} values" if isinstance(returned, list) else _shown(returned)
        raise CallFailed(f"returned {what} for {count} completions where a list with one number or None each is needed")
    width = None if lengths is None else max(lengths, default=0)
    found: Checked = []
    for i, score in enumerate(returned):
        if isinstance(score, list):
            found.append(_per_token(score, None if lengths is None else lengths[i], width))
        else:
            found.append(abstain_value if score is None else _number(score))
    return found


def _number(score: Any) -> float | str:
    if isinstance(score, (list, dict)) or score is None or not abs(score) <= FLOAT32_MAX:
        return f"returned {_shown(score)} where a finite number is needed, or None to abstain"
    return float(score)


def _per_token(score: list[Any], length: int | None, width: int | None) -> list[float] | str:
    if length is not None and len(score) not in (length, width):
        return (
            f"returned {len(score)} numbers for the {length} tokens of an answer; "
            "give one per id of completion_ids, or one number for the whole answer"
        )
    numbers = []
    for item in score[:length]:
        number = _number(item)
        if isinstance(number, str):
            return number
        numbers.append(number)
    return numbers


def _shown(value: Any) -> str:
    return f"{value['repr']} ({value['type']})" if isinstance(value, dict) else repr(value)


def error_policy(on_error: str | float) -> str | float:
    """What to do without a score: ``raise``, ``abstain``, or the score to give instead as a float.

    Raises:
        ConfigError: none of these.
    """
    if on_error in ("raise", "abstain"):
        return on_error
    if isinstance(on_error, (str, bool)) or not math.isfinite(on_error):
        raise ConfigError(f"on_error={on_error}: must be raise, abstain or a finite number")
    return float(on_error)
