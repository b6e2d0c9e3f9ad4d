"""All ranks give an iteration up together where a number of any of them is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rlhf_lightning.errors import NumericalError
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.training.step_guard import NotFinite
from rlhf_lightning.types import Experience, PromptBatch, Rollout

T = TypeVar("T")


def require_finite(experience: Experience, ranks: Ranks) -> None:
    """Refuse experience that is not finite wherever a token counts; a score may be NaN (abstained). Collective.

    Raises:
        NotFinite: on every rank, if it is not on some.
    """
    e, mask = experience, experience.mask
    columns = {
        "a log-probability": e.logprobs, "a log-probability of the reference": e.ref_logprobs,
        "a value": e.values, "a reward": e.rewards, "a return": e.returns, "an advantage": e.advantages,
    }  # fmt: skip
    faults = {"a score": bool(e.scores.isinf().any())}
    faults |= {name: not bool(column[mask].isfinite().all()) for name, column in columns.items()}
    what = ranks.first_fault(faults)
    if what is not None:
        raise NotFinite(what, [experience])


def on_all_ranks(what: str, attempt: Callable[[], T], batch: PromptBatch | Rollout, ranks: Ranks) -> T:
    """What ``attempt`` gives on this rank. Collective.

    Args:
        what: ``attempt`` computes.
        attempt: may raise `NumericalError`.
        batch: what it was computed from.
        ranks: that wait for each other here.

    Raises:
        NotFinite: ``attempt`` met numbers that are not finite, on some rank.
    """
    error: NumericalError | None = None
    try:
        result = attempt()
    except NumericalError as caught:
        error = caught
    if ranks.first_fault({what: error is not None}) is not None:
        raise NotFinite(what, [batch], str(error or "on another rank")) from error
    return result
