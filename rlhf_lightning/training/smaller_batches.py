"""The same work in smaller parts, where memory does not suffice for the whole."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf_lightning.errors import OutOfMemory
from rlhf_lightning.models.memory import Proven, fits, halved, is_out_of_memory
from rlhf_lightning.training.micro_batches import Schedule, most_tokens
from rlhf_lightning.training.random_state import random_state, restore_random_state
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.types import ComparisonBatch, FeedbackBatch, Rollout

T = TypeVar("T")
ADVICE = (
    "lower {}.micro_batch_size, with which resume=auto goes on from the last checkpoint, or {}, or compute in fewer "
    "bits with trainer.precision=bf16-mixed and model.dtype=bfloat16"
)


class Splitting:
    """Forward and backward of the micro-batches of an optimizer step, done again in parts when memory runs out.

    Losses are sums over a denominator of the whole batch, so the parts add up to the same gradient. Lightning gets a
    leaf tensor in place of the loss; so the graph belongs to nobody else, and is gone when it has to be. Where other
    ranks would wait meanwhile (`Ranks.may_repeat`), memory that runs out is an error.

    Args:
        stage: for messages.

    Attributes:
        limit: padded tokens that this rank computes at once; None until memory has run out.
        val_limit: the same for validation, which needs no gradient.
        again: whether the step at hand is done again.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.limit: int | None = None
        self.val_limit: int | None = None
        self.again = False
        self._lowest = math.inf  # limit of all ranks
        self._proven = Proven()
        self._largest = 0  # tokens of a micro-batch of the step
        self._batches: list[Any] = []  # of the step
        self._random: dict[str, Any] = {}
        self._whole = False  # whether the micro-batch at hand is tried in one piece
        self._loss: Tensor | None = None
        self._stand_in: Tensor | None = None
        self._tried: Any = None
        self._compute: Callable[[Any], Tensor] | None = None
        self._device = torch.device("cpu")

    def expect(self, batch: Any, *, first: bool) -> None:
        """Note a micro-batch before it is computed; ``first`` of its optimizer step."""
        self._largest = max(0 if first else self._largest, _tokens(batch))

    def is_unproven(self) -> bool:
        """Whether a micro-batch of the step is larger than what there has been memory for."""
        return self._largest > min(self._proven.tokens, self.limit or self._largest)

    def passed(self, ranks: Ranks, *, apart: bool) -> None:
        """The step is done; collective where its gradients were averaged ``apart``."""
        self._proven.add(min(self._largest, self.limit or self._largest))
        if apart:
            self._lowest = ranks.lowest(self.limit or math.inf)

    def forward(self, batch: Any, compute: Callable[[Any], Tensor], ranks: Ranks, *, first: bool) -> Tensor:
        """The loss [] of a micro-batch, or what stands for it.

        Args:
            batch: the micro-batch.
            compute: gives the loss [] of it or of a part; called again from the first micro-batch of the step on.
            ranks: that train together.
            first: whether it is the first of its optimizer step.

        Raises:
            OutOfMemory: memory ran out where other ranks wait.
        """
        self.again, self._tried = self.again and not first, batch
        if not ranks.may_repeat:
            with self._explained(batch):
                return compute(batch)
        self._compute, self._device = compute, ranks.device
        if first:
            self._batches, self._random = [], random_state(self._device)
        self._batches.append(batch)
        self._loss = None
        self._whole = self.limit is None or _tokens(batch) <= self.limit
        if self._whole:
            fits(lambda: self._hold(compute(batch)))
        value = torch.zeros((), device=self._device) if self._loss is None else self._loss.detach().clone()
        self._stand_in = value.requires_grad_()
        return self._stand_in

    def backward(self, scaled: Tensor, restart: Callable[[], None]) -> None:
        """Add the gradient of the micro-batch.

        Args:
            scaled: its loss [] times what precision and accumulation ask for.
            restart: drops the gradients and sums of the optimizer step, which is done again.

        Raises:
            OutOfMemory: a single row does not fit, or memory ran out where other ranks wait.
        """
        if self._stand_in is None:
            with self._explained(self._tried):
                scaled.backward()
            return
        scaled.backward()  # reaches the stand-in only
        factor, self._stand_in = self._stand_in.grad, None
        if self._whole:
            done = self._loss is not None and fits(lambda: self._backward_whole(factor))
            self._loss = None
        else:
            done = fits(lambda: self._backward_in_parts(self._batches[-1:], factor))
        while not done:
            self._shrink()
            self.again = True
            restart()
            restore_random_state(self._random, self._device)
            done = fits(lambda: self._backward_in_parts(self._batches, factor))

    def validate(self, batch: Any, step: Callable[[Any], object], ranks: Ranks) -> None:
        """A validation step, in parts where memory does not suffice for the whole.

        Args:
            batch: of the validation data.
            step: what is done with each part; leaves nothing behind where it fails.
            ranks: that validate together.

        Raises:
            OutOfMemory: a single row does not fit, or memory ran out where other ranks wait.
        """
        if not ranks.may_repeat:
            with self._explained(batch):
                step(batch)
            return
        left = [batch]
        while left:
            first, *rest = left
            if self.val_limit is not None and _tokens(first) > self.val_limit and _units(first) > 1:
                left = [*parts(first, self.val_limit), *rest]
            elif fits(partial(step, first)):
                left = rest
            elif _units(first) == 1:
                raise OutOfMemory(self._advice(first))
            else:
                self.val_limit = _tokens(first) // 2
                warnings.warn(
                    f"{self.stage}: out of memory with {_tokens(first)} tokens in validation; again, and from now "
                    f"on, with at most {self.val_limit}",
                    stacklevel=2,
                )

    def logged(self) -> dict[str, float]:
        """The tag of the lowest limit of all ranks, once there is one."""
        lowest = min(self._lowest, self.limit or math.inf)
        return {} if lowest == math.inf else {"perf/micro_batch_tokens": lowest}

    def pieces(self, batch: Any, at_least: int) -> int:
        """Into how many pieces to cut a batch that needs no gradient."""
        return at_least if self.limit is None else max(at_least, math.ceil(_tokens(batch) / self.limit))

    def _backward_whole(self, factor: Tensor | None) -> None:
        assert self._loss is not None
        self._loss.backward(factor)

    def _backward_in_parts(self, batches: list[Any], factor: Tensor | None) -> None:
        assert self.limit is not None and self._compute is not None
        for batch in batches:
            for part in parts(batch, self.limit):
                self._tried = part
                self._compute(part).backward(factor)

    def _shrink(self) -> None:
        if _units(self._tried) == 1:
            raise OutOfMemory(self._advice(self._tried))
        stage, tokens = self.stage, _tokens(self._tried)
        self.limit = tokens // 2
        warnings.warn(
            f"{stage}: out of memory with {tokens} tokens at once; this step again, and all others, with at most "
            f"{self.limit} (same gradients); a smaller {stage}.data.micro_batch_size saves the second try",
            stacklevel=2,
        )

    def _hold(self, loss: Tensor) -> None:
        self._loss = loss

    @contextmanager
    def _explained(self, batch: Any) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(self._advice(batch)) from error

    def _advice(self, batch: Any) -> str:
        size = "" if batch is None else f" with {_units(batch)} rows of {batch.input_ids.shape[1]} tokens"
        advice = ADVICE.format(f"{self.stage}.data", f"{self.stage}.data.max_length")
        return f"{self.stage}: out of memory{size}; {advice}"


class SmallerMicroBatches:
    """Work on a rollout, done again with half the micro-batch where memory runs out.

    Args:
        stage: for messages.

    Attributes:
        rows: in a micro-batch of this rank, since memory ran out; None before.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.rows: int | None = None
        self._proven = Proven()

    def is_unproven(self, rollout: Rollout, schedule: Schedule) -> bool:
        """Whether a micro-batch of a minibatch is larger than what there has been memory for, with its gradients."""
        return most_tokens(rollout, self._fitting(schedule)) > self._proven.tokens

    def passed(self, rollout: Rollout, schedule: Schedule) -> None:
        """An optimizer step on a minibatch is done."""
        self._proven.add(most_tokens(rollout, self._fitting(schedule)))

    def run(
        self, attempt: Callable[[Schedule], T], schedule: Schedule, ranks: Ranks, restart: Callable[[], object]
    ) -> T:
        """``attempt`` with this schedule, and again with half the micro-batch as long as memory does not suffice.

        Args:
            attempt: the work; draws the same random numbers each time.
            schedule: to begin with.
            ranks: that work together.
            restart: drops what a failed attempt left, called before each.

        Raises:
            OutOfMemory: a single response does not fit, or memory ran out where other ranks wait.
        """
        state = random_state(ranks.device)

        def again(rows: int) -> T:
            restart()
            restore_random_state(state, ranks.device)
            return attempt(schedule.at_most(rows))

        rows = self._fitting(schedule).micro
        advice = ADVICE.format("ppo.settings", "sampling.max_new_tokens or ppo.data.max_prompt_length")
        result, fitted = halved(again, rows, self.stage, advice, smallest=1 if ranks.may_repeat else rows)
        if fitted < schedule.micro:
            self.rows = fitted
        return result

    def logged(self, ranks: Ranks) -> dict[str, float]:
        """The tag of the lowest limit of all ranks, once there is one. Collective."""
        lowest = ranks.lowest(self.rows or math.inf)
        return {} if lowest == math.inf else {"perf/micro_batch_size": lowest}

    def _fitting(self, schedule: Schedule) -> Schedule:
        return schedule.at_most(self.rows or schedule.micro)


def parts(batch: Any, limit: int) -> Iterator[Any]:
    """A micro-batch in equal parts of about ``limit`` padded tokens; rows of one prompt's ranking stay together."""
    units = _units(batch)
    for rows in torch.arange(units).chunk(min(units, math.ceil(_tokens(batch) / limit))):
        yield _part(batch, int(rows[0]), int(rows[-1]) + 1)


def _part(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, ComparisonBatch):
        rows = ((batch.prompt_index >= start) & (batch.prompt_index < stop)).nonzero().squeeze(1)
        part = batch.select(rows)
        return replace(part, prompt_index=part.prompt_index - start, num_prompts=stop - start)
    if isinstance(batch, FeedbackBatch):  # the mismatched completions, which need no gradient, stay with the first part
        whole = replace(batch, mismatched=None).select(torch.arange(start, stop))
        return replace(whole, mismatched=None if start else batch.mismatched)
    return batch.select(torch.arange(start, stop))


def _units(batch: Any) -> int:
    return getattr(batch, "num_prompts", len(batch.input_ids))


def _tokens(batch: Any) -> int:
    return batch.input_ids.numel()
