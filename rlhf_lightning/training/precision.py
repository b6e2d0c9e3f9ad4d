"""Weights in half precision, and nothing else; and the precision in which sharded weights are gathered."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import nn

from rlhf_lightning.models import FrozenModels

log = logging.getLogger(__name__)
HALF = ("bf16-true", "16-true")


class HalfWeights(HalfPrecision):
    """``precision=bf16-true`` or ``16-true`` for the phases: `HalfPrecision` that keeps to the weights.

    Lightning's own would also convert batches, which are frozen dataclasses and hold counts that must stay exact, and
    make half precision the default of every tensor that a step creates; losses and advantages are computed in float32.

    Args:
        precision: see above.
    """

    def tensor_init_context(self) -> AbstractContextManager[None]:
        """Tensors are created in float32."""
        return nullcontext()

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """See `tensor_init_context`."""
        yield

    def convert_input(self, data: Any) -> Any:
        """Batches stay as they are."""
        return data


def convert_weights(module: nn.Module, strategy: Any) -> None:
    """Bring all models of a phase to half precision if its strategy wants that, the frozen ones as well.

    Lightning would do so later and to its children only: a reference would begin with other weights than the policy.
    """
    precision = getattr(strategy, "precision_plugin", None)
    if isinstance(precision, HalfPrecision):
        precision.convert_module(module)
        frozen = getattr(module, "frozen", None)
        if isinstance(frozen, FrozenModels):
            frozen.to(next(module.parameters()).dtype)


def sharded_dtype(strategy: Any) -> torch.dtype | None:
    """What sharded weights are gathered in: bfloat16 under ``bf16-mixed``, None for what they are.

    Autocast alone would gather float32 and make a copy in bfloat16, and the backward pass keeps every copy: sharding
    would save no memory in between.
    """
    precision = getattr(getattr(strategy, "precision_plugin", None), "precision", None)
    return torch.bfloat16 if precision == "bf16-mixed" else None


def warn_of_half(model: nn.Module, stage: str) -> None:
    """Say what learning in weights of half precision costs. Adapters beside such weights are float32, see `Lora`."""
    learning = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    if half := next((dtype for dtype in learning if dtype.itemsize < 4), None):
        log.warning(
            f"{stage}: learns in weights of {str(half).removeprefix('torch.')}, where most steps are lost to rounding: "
            "of bfloat16 weights about 2 % change at all in 100 steps of AdamW at a learning rate of 1e-6, and 15 % at "
            "1e-5. trainer.precision=bf16-mixed model.dtype=float32 computes in bfloat16 and learns in float32"
        )
