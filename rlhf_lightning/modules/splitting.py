"""The gradient of a micro-batch in parts, where memory does not suffice for the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rlhf_lightning.errors import OutOfMemory
from rlhf_lightning.models.memory import fits, is_out_of_memory
from rlhf_lightning.modules.random_state import random_state, restore_random_state
from rlhf_lightning.modules.totals import Totals
from rlhf_lightning.private_api.lightning import strategy_of
from rlhf_lightning.types import ComparisonBatch, FeedbackBatch

if TYPE_CHECKING:
    from rlhf_lightning.modules.base import RLHFModule


class Splitting:
    """Forward and backward of the micro-batches of an optimizer step, done again in parts when memory runs out.

    Losses are sums over a denominator of the whole batch, so the parts add up to the same gradient. Lightning gets a
    leaf tensor in place of the loss; so the graph belongs to nobody else, and is gone when it has to be. With several
    processes, which wait for each other inside the backward, memory that runs out is an error.

    Attributes:
        limit: padded tokens computed at once; None until memory has run out.
        val_limit: the same for validation, which needs no gradient.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.val_limit: int | None = None
        self._batches: list[Any] = []  # of the step
        self._random: dict[str, Any] = {}
        self._whole = False  # whether the micro-batch at hand is tried in one piece
        self._loss: Tensor | None = None
        self._stand_in: Tensor | None = None
        self._tried: Any = None

    def forward(self, module: RLHFModule, batch: Any, first: bool) -> Tensor:
        """The loss [] of a micro-batch, or what stands for it; ``first`` of its optimizer step, or not.

        Raises:
            OutOfMemory: memory ran out in one of several processes.
        """
        if first:
            module.guard.restart()
        if not isinstance(strategy_of(module), SingleDeviceStrategy):
            with _explained(module, batch):
                return self._note(module, batch)
        if first:
            self._batches, self._random = [], random_state(module.device)
        self._batches.append(batch)
        self._loss, self._tried = None, batch
        self._whole = self.limit is None or _tokens(batch) <= self.limit
        if self._whole:
            fits(lambda: self._hold(self._note(module, batch)))
        value = torch.zeros((), device=module.device) if self._loss is None else self._loss.detach().clone()
        self._stand_in = value.requires_grad_()
        return self._stand_in

    def backward(self, module: RLHFModule, scaled: Tensor) -> None:
        """Add the gradient of the micro-batch; ``scaled`` is its loss times what precision and accumulation ask for.

        Raises:
            OutOfMemory: a single row does not fit, or memory ran out in one of several processes.
        """
        if self._stand_in is None:
            with _explained(module, None):
                scaled.backward()
            return
        scaled.backward()  # reaches the stand-in only
        factor, self._stand_in = self._stand_in.grad, None
        if self._whole:
            done = self._loss is not None and fits(lambda: self._backward_whole(factor))
            self._loss = None
        else:
            done = fits(lambda: self._backward_in_parts(module, self._batches[-1:], factor))
        while not done:
            self._shrink(module)
            module.trainer.optimizers[0].zero_grad()
            module.train_totals = Totals()
            module.guard.restart()
            restore_random_state(self._random, module.device)
            done = fits(lambda: self._backward_in_parts(module, self._batches, factor))

    def validate(self, module: RLHFModule, batch: Any, step: Callable[[Any], object]) -> None:
        """A validation step, in parts where memory does not suffice for the whole.

        Args:
            module: for messages.
            batch: of the validation data.
            step: what is done with each part; leaves nothing behind where it fails.

        Raises:
            OutOfMemory: a single row does not fit, or memory ran out in one of several processes.
        """
        if not isinstance(strategy_of(module), SingleDeviceStrategy):
            with _explained(module, batch):
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
                raise OutOfMemory(_advice(module, first))
            else:
                self.val_limit = _tokens(first) // 2
                rank_zero_warn(
                    f"{module.stage}: out of memory with {_tokens(first)} tokens in validation; again, and from now "
                    f"on, with at most {self.val_limit}"
                )

    def logged(self) -> dict[str, float]:
        """The tag of the limit, once there is one."""
        return {} if self.limit is None else {"perf/micro_batch_tokens": float(self.limit)}

    def pieces(self, batch: Any, at_least: int) -> int:
        """Into how many pieces to cut a batch that needs no gradient."""
        return at_least if self.limit is None else max(at_least, math.ceil(_tokens(batch) / self.limit))

    def _backward_whole(self, factor: Tensor | None) -> None:
        assert self._loss is not None
        self._loss.backward(factor)

    def _backward_in_parts(self, module: RLHFModule, batches: list[Any], factor: Tensor | None) -> None:
        assert self.limit is not None
        for batch in batches:
            for part in parts(batch, self.limit):
                self._tried = part
                with module.trainer.precision_plugin.train_step_context():
                    loss = self._note(module, part)
                loss.backward(factor)

    def _shrink(self, module: RLHFModule) -> None:
        if _units(self._tried) == 1:
            raise OutOfMemory(_advice(module, self._tried))
        stage, tokens = module.stage, _tokens(self._tried)
        self.limit = tokens // 2
        rank_zero_warn(
            f"{stage}: out of memory with {tokens} tokens at once; this step again, and all others, with at most "
            f"{self.limit} (same gradients); a smaller {stage}.data.micro_batch_size saves the second try"
        )

    def _hold(self, loss: Tensor) -> None:
        self._loss = loss

    @staticmethod
    def _note(module: RLHFModule, batch: Any) -> Tensor:
        loss, sums = module.training_loss(batch)
        module.train_totals.add(sums)
        module.guard.saw(batch, loss)
        return loss


def in_parts(step: Callable[[Any, Any, int], None]) -> Callable[[Any, Any, int], None]:
    """Make a ``validation_step`` one that does its batch in parts when memory runs out (`Splitting.validate`)."""

    @wraps(step)
    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.splitting.validate(self, batch, lambda part: step(self, part, batch_idx))

    return validation_step


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
    if isinstance(batch, FeedbackBatch):  # the strange answers, which need no gradient, stay with the first part
        whole = replace(batch, mismatched=None).select(torch.arange(start, stop))
        return replace(whole, mismatched=None if start else batch.mismatched)
    return batch.select(torch.arange(start, stop))


def _units(batch: Any) -> int:
    return getattr(batch, "num_prompts", len(batch.input_ids))


def _tokens(batch: Any) -> int:
    return batch.input_ids.numel()


@contextmanager
def _explained(module: RLHFModule, batch: Any) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_advice(module, batch)) from error


def _advice(module: RLHFModule, batch: Any) -> str:
    stage, size = (
        module.stage,
        "" if batch is None else f" with {_units(batch)} rows of {batch.input_ids.shape[1]} tokens",
    )
    return (
        f"{stage}: out of memory{size}; lower {stage}.data.micro_batch_size or {stage}.data.max_length, or compute in "
        "fewer bits with trainer.precision=bf16-mixed and model.dtype=bfloat16"
    )
