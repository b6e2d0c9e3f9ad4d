"""Skip a step whose numbers are not finite, keep its batch, and end the run when that goes on."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rlhf_lightning.checkpoint.codec import write_state
from rlhf_lightning.checkpoint.nonfinite import first_nonfinite
from rlhf_lightning.errors import CheckpointError, ConfigError, NumericalError
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.types import Experience, PromptBatch, Rollout, TensorData

T = TypeVar("T")
log = logging.getLogger(__name__)

BAD_BATCHES = "bad_batches"
DUMPS = 5  # kept by one process
MIN_LOSS_SCALE = 1.0  # a loss scaler that is down here no longer searches for its scale


class Step(NamedTuple):
    """An optimizer step (in PPO an iteration), and what is needed to skip it."""

    number: int  # as messages count them; the first is 1
    ranks: Ranks
    weights: Callable[[], Iterable[tuple[str, Tensor]]]  # of the module, by name
    folder: Path  # of the run


class NotFinite(NumericalError):
    """An iteration met numbers that nothing can be learned from; raised on every rank alike.

    Args:
        what: the quantity, for example ``score``.
        batches: where it was met, on this rank.
        detail: more about it, if anything is known.
    """

    def __init__(self, what: str, batches: Sequence[TensorData] = (), detail: str = "") -> None:
        super().__init__(detail or f"{what} is not finite")
        self.what, self.batches, self.detail = what, batches, detail


class StepGuard:
    """Judges every optimizer step before it is taken; all ranks decide together.

    A step is skipped by dropping its gradients: weights and optimizer state stay as they are, while the learning rate,
    the counters and the data go on, as a step does that a loss scaler skips. What a loss scaler skips while it looks
    for its scale is not counted. If a weight itself is not finite, the run ends at once, since no step can mend it.

    Args:
        max_skipped: this many steps in a row end the run.
        stage: for messages and folders.

    Attributes:
        skipped: steps skipped so far.
        in_row: of them the last ones, without a good one since.
        learned: steps taken so far with a gradient that is finite and not 0.
        equal: rollouts so far whose scores were all the same.
        failed: whether the step at hand was skipped.

    Raises:
        ConfigError: ``max_skipped`` is below 1.
    """

    def __init__(self, max_skipped: int, stage: str) -> None:
        if max_skipped < 1:
            key = f"{stage}.max_skipped_steps"
            raise ConfigError(f"{key}={max_skipped}: must be at least 1, which ends the run at the first skipped step")
        self.max_skipped, self.stage = max_skipped, stage
        self.skipped = self.in_row = self.equal = self.learned = self._dumps = 0
        self.failed = False
        self._seen: list[tuple[TensorData, Tensor]] = []

    def record(self, batch: TensorData, loss: Tensor) -> None:
        """Note a micro-batch of the step and its loss []."""
        self._seen.append((batch, loss.detach()))

    def restart(self) -> None:
        """Forget the micro-batches of the step: it begins, or is done again."""
        self._seen.clear()

    def begin(self) -> None:
        """A new step (in PPO an iteration, which takes several optimizer steps)."""
        self.in_row = self.in_row if self.failed else 0
        self.failed = False

    def check(self, norm: Tensor, step: Step, scaler: Any = None) -> bool:
        """Whether the losses and the gradient norm [] are finite on all ranks; if not, the step counts as skipped.

        Args:
            norm: of the whole gradient.
            step: at hand.
            scaler: of the losses, in fp16.

        Raises:
            NumericalError: see `fail`.
        """
        seen, self._seen = self._seen, []
        finite = torch.stack([loss for _, loss in seen]).isfinite().tolist() if seen else []
        overflow = not math.isfinite(float(norm)) and not _searches_scale(scaler)
        what = step.ranks.first_fault({"loss": not all(finite), "gradient norm": overflow})
        if what is not None:
            bad = [batch for (batch, _), good in zip(seen, finite, strict=True) if not good]
            self.fail(NotFinite(what, bad or [batch for batch, _ in seen]), step)
        elif math.isfinite(float(norm)) and float(norm) > 0:
            self.learned += 1
        return what is None

    def fail(self, fault: NotFinite, step: Step) -> None:
        """Count a skipped step and keep what it was made of. Collective.

        Raises:
            NumericalError: a weight is not finite, or it was the last of ``max_skipped`` in a row.
        """
        self.failed = True
        self.skipped += 1
        self.in_row += 1
        where = f"step {step.number}: {fault.what} is not finite"
        where += f" ({fault.detail})" if fault.detail else ""
        dump = self._dump(fault, step)
        self.require_weights(step, f"{where}. {dump}No step can be taken from here")
        if self.in_row >= self.max_skipped:
            raise NumericalError(
                f"{self.stage}: {where}; {self.in_row} in a row were skipped "
                f"({self.stage}.max_skipped_steps). {dump}Look at those rows, "
                "lower the learning rate, or compute in more bits (trainer.precision); saved checkpoints are unharmed"
            )
        rank_zero_warn(
            f"{self.stage}: {where}: skipped, {self.in_row} of {self.max_skipped} in a row that end the run. {dump}"
        )

    def require_weights(self, step: Step, then: str) -> None:
        """Refuse to go on if a weight of any rank is NaN or infinite; ``then`` begins the message. Collective.

        Raises:
            NumericalError: names the weight.
        """
        name = first_nonfinite(step.weights())
        if step.ranks.first_fault({"weight": name is not None}):
            raise NumericalError(
                f"{self.stage}: {then}, since the weight {name or 'of another rank'} is not finite; resume from the "
                "last checkpoint (resume=auto) with a lower learning rate"
            )

    def require_learned(self, stage: str) -> None:
        """Refuse to call a model trained that no step has changed.

        Raises:
            NumericalError: says what became of the steps.
        """
        if not self.learned:
            raise NumericalError(
                f"{stage}: not one step has changed the model: {self.skipped} were skipped because a number was not "
                "finite, the others had gradients of exactly 0. Nothing is exported. Look at the scores and at the "
                f"rows ({BAD_BATCHES} in run_dir), lower the learning rate, or see whether any weight is left to train"
            )

    def note_scores(self, scores: Tensor, step: Step) -> None:
        """Count rollouts in which all ranks' scores [B] are one and the same number, and warn of the first."""
        judged = torch.where(scores.isnan(), torch.inf, scores), torch.where(scores.isnan(), -torch.inf, scores)
        lowest, highest = step.ranks.gather(torch.stack([judged[0].min(), judged[1].max()])).unbind(1)
        responses = len(scores) * step.ranks.size
        if responses == 1 or lowest.min() != highest.max():
            return
        self.equal += 1
        if self.equal == 1 and step.ranks.index == 0:
            log.warning(
                "%s: step %d: all %d responses scored %.4g: nothing can be learned; guard/equal_scores counts such "
                "rollouts", self.stage, step.number, responses, float(lowest.min()),
            )  # fmt: skip

    def logged(self) -> dict[str, float]:
        """The counts as tags, each from the first time on."""
        counts = {"skipped_steps": self.skipped, "equal_scores": self.equal}
        return {f"guard/{name}": float(count) for name, count in counts.items() if count}

    def state_dict(self) -> dict[str, int]:
        """Counts that survive a resume."""
        in_row = self.in_row if self.failed else 0
        return {"skipped": self.skipped, "equal": self.equal, "learned": self.learned, "in_row": in_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore `state_dict`; what is missing is 0, and of older checkpoints it is taken that they have learned."""
        self.skipped, self.equal, self.in_row = (state.get(name, 0) for name in ("skipped", "equal", "in_row"))
        self.learned = state.get("learned", 1)
        self.failed = self.in_row > 0

    def _dump(self, fault: NotFinite, step: Step) -> str:
        """Write the batches of this rank and say where; nothing once there are `DUMPS` of them."""
        folder = step.folder / BAD_BATCHES / self.stage / f"step-{step.number:06d}"
        if self._dumps >= DUMPS or not fault.batches:
            return ""
        self._dumps += 1
        rank = folder / f"rank-{step.ranks.index}"
        content = {"what": fault.what, "detail": fault.detail, "batches": [_plain(batch) for batch in fault.batches]}
        try:
            rank.mkdir(parents=True, exist_ok=True)
            write_state(rank, content)
        except (OSError, CheckpointError) as error:
            return f"The batch could not be written to {folder} ({error}). "
        return f"The batch is in {folder}. "


def _searches_scale(scaler: Any) -> bool:
    """Whether a loss scaler (fp16) takes care of the overflow by itself."""
    return scaler is not None and scaler.get_scale() > MIN_LOSS_SCALE


def _plain(data: Any) -> Any:
    """Dataclasses of tensors as dicts; rows as JSON can write them; hidden states, which are large, left out."""
    if isinstance(data, TensorData):
        named = {f.name: getattr(data, f.name) for f in fields(data) if f.name != "hidden"}  # type: ignore[arg-type]
        return {name: _plain(value) for name, value in named.items()}
    return data if isinstance(data, (Tensor, float)) else json.loads(json.dumps(data, default=str))


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
