"""A rollout that is sampled in a thread of its own while the one before is learned from."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning import signals
from rlhf_lightning.errors import ConfigError, NumericalError
from rlhf_lightning.rules.rows import RECORDED_SCORE
from rlhf_lightning.types import PromptBatch, Rollout


class _Sampling(threading.Thread):
    """One call of an engine, and what came of it."""

    def __init__(self, work: Callable[[], Rollout], device: torch.device) -> None:
        super().__init__(name="sample_ahead", daemon=True)
        self.work, self.device = work, device
        self.unwanted = threading.Event()
        self.rollout: Rollout | None = None
        self.error: BaseException | None = None
        self.seconds = 0.0

    def run(self) -> None:
        """Errors are kept for the thread that waits."""
        start = time.perf_counter()
        try:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)  # each thread has its own
            with signals.wanted_until(self.unwanted), torch.no_grad():
                self.rollout = self.work()
        except BaseException as error:
            self.error = error
        self.seconds = time.perf_counter() - start

    def give_up(self) -> None:
        """Return when it has ended, at its next `signals.poll`."""
        self.unwanted.set()
        self.join()


class PendingRollout:
    """At most one rollout that nobody has learned from yet.

    Only `begin` starts work, which ends by itself or, at the latest when this object or the process ends, is given up.

    Attributes:
        seconds: that sampling the last one took.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._thread: _Sampling | None = None
        self._done: Rollout | NumericalError | None = None
        self._at_end: Any = None

    @property
    def is_there(self) -> bool:
        """Whether a rollout was begun, or restored, and not taken."""
        return self._thread is not None or self._done is not None

    def begin(self, work: Callable[[], Rollout], device: torch.device) -> None:
        """Call ``work`` in a thread, on ``device``."""
        self._thread = _Sampling(work, device)
        self._at_end = weakref.finalize(self, self._thread.give_up)
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is sampled any more.

        Raises:
            BaseException: what ``work`` raised. A `NumericalError` waits for `take`, where ranks agree on it.
        """
        if self._thread is None:
            return
        self._thread.join()
        thread, self._thread = self._thread, None
        self._at_end.detach()
        self.seconds = thread.seconds
        if thread.error is not None and not isinstance(thread.error, NumericalError):
            raise thread.error
        self._done = thread.rollout if thread.error is None else thread.error

    def take(self, prompts: PromptBatch) -> Rollout:
        """The rollout, which answers these prompts.

        Raises:
            ConfigError: it answers others: the loader has not handed out what its ``peek`` said.
            BaseException: what the work raised.
        """
        self.wait()
        done, self._done = self._done, None
        if isinstance(done, NumericalError):
            raise done
        assert done is not None
        done = done.to(prompts.input_ids.device)
        if not torch.equal(done.prompt_ids, prompts.input_ids):
            raise ConfigError(
                "ppo.settings.sample_ahead=true: the loader handed out other prompts than its peek() said before"
            )
        added = done.rows or ({},) * len(prompts.rows)
        return replace(done, rows=tuple({**row, **more} for row, more in zip(prompts.rows, added, strict=True)))

    def drop(self) -> None:
        """Give up what is sampled, and forget it."""
        if self._thread is not None:
            self._at_end()
        self._thread = self._done = None

    def state_dict(self) -> dict[str, Any]:
        """The finished rollout as plain tensors, and of its rows what a replay has added; waits for it."""
        self.wait()
        if isinstance(self._done, Rollout):
            named = {field.name: getattr(self._done, field.name) for field in fields(Rollout)}
            state: dict[str, Any] = {name: value.cpu() for name, value in named.items() if isinstance(value, Tensor)}
            state["scores"] = [row[RECORDED_SCORE] for row in self._done.rows if RECORDED_SCORE in row]
            return state
        return {"error": str(self._done)} if self._done is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; `take` brings the rows back."""
        self.drop()
        if "error" in state:
            self._done = NumericalError(state["error"])
        elif state:
            rows = tuple({RECORDED_SCORE: score} for score in state["scores"])
            tensors = {name: value for name, value in state.items() if name != "scores"}
            self._done = Rollout(**{"rollout_logprobs": None, **tensors, "rows": rows})
