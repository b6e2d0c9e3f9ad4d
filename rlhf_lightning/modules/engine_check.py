"""Whether the engine samples from the model that learns, looked at where both have scored the same tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import NumericalError
from rlhf_lightning.training.micro_batches import micro_batches, take
from rlhf_lightning.types import Rollout

ROUNDING, HALF_ROUNDING = 1e-3, 0.05  # nats per token, on average


class EngineCheck:
    """Stops a run whose first rollout has other log-probabilities in the engine than in training. Collective."""

    def __init__(self) -> None:
        self.gap: float | None = (
            None  # nats per token; None before the first rollout, or where the engine keeps nothing
        )
        self._done = False

    def __call__(self, module: Any, rollout: Rollout, logprobs: Tensor) -> None:
        """Look at the first rollout of a process, and at no other.

        Args:
            module: a `PPOModule`.
            rollout: what it has sampled.
            logprobs: of the training forward, [B, T]. Where that was saved, it is run here on one micro-batch.

        Raises:
            NumericalError: the two differ by more than rounding.
        """
        if self._done or rollout.rollout_logprobs is None:
            return
        self._done = True
        if module.reuses_logprobs(rollout):
            schedule = module.schedule(len(rollout))
            rollout = take(rollout, micro_batches(rollout, schedule)[0], schedule)
            logprobs = module.forward_policy(rollout, entropy=False).logprobs
        gaps = torch.where(rollout.mask, (rollout.rollout_logprobs - logprobs).abs(), 0)  # type: ignore[operator]
        total, count = module.ranks.sum(gaps.sum(), rollout.mask.sum())
        self.gap = total / max(count, 1.0)
        wide = all(weight.dtype.itemsize >= 4 for weight in module.policy.parameters())
        whole = wide and in_full_precision(module.engine, module.trainer.precision)
        limit = ROUNDING if whole else HALF_ROUNDING
        if self.gap > limit:
            kind = getattr(getattr(module.policy, "config", None), "model_type", type(module.policy).__name__)
            raise NumericalError(
                f"{module.stage}: for this {kind} model the engine's log-probabilities are {self.gap:.2g} nats per "
                f"token from those of the training forward on the same answers, and rounding makes {limit:g} at most. "
                "It would learn from another model's answers: use rollout=hf, or model.pack_rows=false where that "
                "closes the gap"
            )


def in_full_precision(engine: Any, precision: Any) -> bool:
    """Whether sampling and training both compute with the weights as they are, and multiply float32 in full."""
    products = torch.get_float32_matmul_precision() == "highest"
    return products and getattr(engine, "is_exact", False) and precision in ("32-true", "64-true")
