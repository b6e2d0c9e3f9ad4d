"""One iteration of an online module when numbers go wrong or memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from rlhf_lightning.errors import NumericalError
from rlhf_lightning.models.memory import halved
from rlhf_lightning.modules.finite import NotFinite
from rlhf_lightning.modules.ppo_settings import Schedule
from rlhf_lightning.modules.random_state import random_state, restore_random_state
from rlhf_lightning.types import Experience, PromptBatch, Rollout

if TYPE_CHECKING:
    from rlhf_lightning.modules.online import OnlineModule

T = TypeVar("T")
log = logging.getLogger(__name__)


@contextmanager
def guarded(module: OnlineModule) -> Iterator[None]:
    """One iteration; all ranks give it up where a number of any of them is not finite.

    Raises:
        NumericalError: see `StepGuard.fail`.
    """
    module.guard.begin()
    module.gave_up = False
    try:
        yield
    except NotFinite as fault:
        module.guard.fail(module, fault)
        module.gave_up = True
        module.rollouts += 1
        module.log_dict(module.guard.logged())


def checked(module: OnlineModule, experience: Experience) -> Experience:
    """The experience, if all of it is finite wherever a token counts; a score may be NaN (abstained). Collective.

    Raises:
        NotFinite: it is not, on some rank.
    """
    e, mask = experience, experience.mask
    columns = {
        "a log-probability": e.logprobs, "a log-probability of the reference": e.ref_logprobs,
        "a value": e.values, "a reward": e.rewards, "a return": e.returns, "an advantage": e.advantages,
    }  # fmt: skip
    faults = {"a score": bool(e.scores.isinf().any())}
    faults |= {name: not bool(column[mask].isfinite().all()) for name, column in columns.items()}
    what = module.guard.agree(module, faults)
    if what is not None:
        raise NotFinite(what, [experience])
    _notice_equal(module, e.scores)
    return experience


def _notice_equal(module: OnlineModule, scores: Tensor) -> None:
    """Count rollouts in which all ranks' scores [B] are one and the same number, and warn of the first."""
    judged = torch.where(scores.isnan(), torch.inf, scores), torch.where(scores.isnan(), -torch.inf, scores)
    lowest, highest = module.over_ranks(torch.stack([judged[0].min(), judged[1].max()])).unbind(1)
    if len(scores) * module.world_size == 1 or lowest.min() != highest.max():
        return
    module.guard.equal += 1
    if module.guard.equal == 1 and module.global_rank == 0:
        log.warning(
            "%s: step %d: all %d responses score %.4g, which tells none from another; guard/equal_scores counts such "
            "rollouts", module.stage, module.step_number, len(scores) * module.world_size, float(lowest.min()),
        )  # fmt: skip


def on_all_ranks(module: OnlineModule, what: str, attempt: Callable[[], T], batch: PromptBatch | Rollout) -> T:
    """What ``attempt`` gives on this rank.

    Args:
        module: whose ranks wait for each other here.
        what: ``attempt`` computes.
        attempt: may raise `NumericalError`.
        batch: what it was computed from.

    Raises:
        NotFinite: ``attempt`` met numbers that are not finite, on some rank.
    """
    error: NumericalError | None = None
    try:
        result = attempt()
    except NumericalError as caught:
        error = caught
    if module.guard.agree(module, {what: error is not None}) is not None:
        raise NotFinite(what, [batch], str(error or "on another rank")) from error
    return result


def fitting(module: OnlineModule, attempt: Callable[[Schedule], T], schedule: Schedule) -> T:
    """``attempt`` with this schedule, and again with half the micro-batch as long as memory does not suffice.

    Raises:
        OutOfMemory: a single response does not fit, or one of several processes, which wait for each other inside the
            backward, has no memory left.
    """
    state = random_state(module.device)

    def again(rows: int) -> T:
        module.trainer.optimizers[0].zero_grad()
        restore_random_state(state, module.device)
        return attempt(schedule.at_most(rows))

    rows = schedule.at_most(module.most_rows or schedule.micro).micro
    advice = (
        "lower ppo.settings.micro_batch_size, ppo.sampling.max_new_tokens or ppo.data.max_prompt_length, or compute in "
        "fewer bits with trainer.precision=bf16-mixed and model.dtype=bfloat16"
    )
    result, fitted = halved(again, rows, module.stage, advice, smallest=1 if module.world_size == 1 else rows)
    if fitted < schedule.micro:
        module.most_rows = fitted
    return result
