"""Whether the engine samples from the model that learns, looked at where both have scored the same tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rlhf_lightning.errors import NumericalError
from rlhf_lightning.metrics.rollout import ENGINE_GAP, gap_to_training
from rlhf_lightning.rollout.engine import Agreement
from rlhf_lightning.training.micro_batches import micro_batches, take
from rlhf_lightning.types import PromptBatch, Rollout

ROUNDING, HALF_ROUNDING = 1e-3, 0.05  # nats per token, on average
ROWS, TOKENS = 8, 16  # that are looked at before a rollout is sampled ahead


class EngineCheck:
    """Stops a run whose engine has other log-probabilities than training. Collective.

    Of an engine that runs the policy itself the first rollout of a process is looked at; of one that is given its
    weights as many as its `rlhf_lightning.rollout.engine.Agreement` says.
    """

    def __init__(self) -> None:
        self.gap: float | None = None  # nats per token at the last look; None: no look, or the engine keeps nothing
        self._rollouts = 0

    def __call__(self, module: Any, rollout: Rollout, logprobs: Tensor) -> None:
        """Look at a rollout, if it is its turn and `before` does not; one of an older policy is left out.

        Args:
            module: a `PPOModule`.
            rollout: what it has sampled.
            logprobs: of the training forward, [B, T]. Where that was saved, it is run here on one micro-batch.

        Raises:
            NumericalError: the two differ by more than rounding, or than the agreement allows.
        """
        ahead = module.settings.sample_ahead
        if (ahead and _agreement(module)) or not self._is_turn(module) or rollout.rollout_logprobs is None:
            return
        if ahead and (rollout.weight_version != module.optimizer_steps).any():
            return  # what a checkpoint held
        if module.reuses_logprobs(rollout):
            schedule = module.schedule(len(rollout))
            rollout = take(rollout, micro_batches(rollout, schedule)[0], schedule)
            logprobs = module.forward_policy(rollout, entropy=False).logprobs
        self._compare(module, rollout, logprobs)

    @torch.no_grad()
    def before(self, module: Any, prompts: PromptBatch) -> None:
        """Have a few tokens sampled for the first of these prompts, if it is the turn of the rollout that answers them.

        With ``sample_ahead`` the policy has learned by the time its rollout is there, and an old policy would look like
        a wrong engine. Only the first rollout of a run has the policy as it is, which is enough without an agreement.

        Raises:
            NumericalError: see `__call__`.
        """
        if not _agreement(module) or not self._is_turn(module):
            return
        sampling = replace(module.sampling, max_new_tokens=min(TOKENS, module.sampling.max_new_tokens))
        few = prompts.select(torch.arange(min(ROWS, len(prompts))))
        rollout = module.generate_aside(few, module.optimizer_steps, sampling)
        if rollout.rollout_logprobs is not None:
            self._compare(module, rollout, module.forward_policy(rollout, entropy=False).logprobs)

    def _is_turn(self, module: Any) -> bool:
        agreement = _agreement(module)
        self._rollouts += 1
        return self._rollouts == 1 if agreement is None else (self._rollouts - 1) % agreement.every_n == 0

    def _compare(self, module: Any, rollout: Rollout, logprobs: Tensor) -> None:
        agreement = _agreement(module)
        self.gap = gap_to_training(rollout, logprobs, module.ranks)[f"{ENGINE_GAP}/mean"]
        if agreement is None:
            self._require_rounding(module, self.gap)
        else:
            _require(agreement, module.stage, self.gap)

    def _require_rounding(self, module: Any, gap: float) -> None:
        wide = all(weight.dtype.itemsize >= 4 for weight in module.policy.parameters())
        whole = wide and in_full_precision(module.engine, module.trainer.precision)
        limit = ROUNDING if whole else HALF_ROUNDING
        if not gap <= limit:
            kind = getattr(getattr(module.policy, "config", None), "model_type", type(module.policy).__name__)
            raise NumericalError(
                f"{module.stage}: for this {kind} model the engine's log-probabilities are {gap:.2g} nats per "
                f"token from those of the training forward on the same answers, and rounding makes {limit:g} at most. "
                "It would learn from another model's answers: use rollout=hf, or model.pack_rows=false where that "
                "closes the gap"
            )


def _agreement(module: Any) -> Agreement | None:
    found: Agreement | None = getattr(module.engine, "agreement", None)
    return found


def _require(agreement: Agreement, stage: str, gap: float) -> None:
    says = (
        f"{stage}: the log-probabilities of the server are {gap:.2g} nats per token from those of the training forward "
        "on the same answers"
    )
    if not gap <= agreement.stop_at:
        raise NumericalError(
            f"{says}, and rollout.stop_at={agreement.stop_at:g}. It has other weights, computes in another dtype "
            "(--dtype), or says the log-probabilities of another distribution (--logprobs-mode processed_logprobs): "
            "see docs/server.md"
        )
    if gap > agreement.warn_at:
        rank_zero_warn(f"{says} (rollout.warn_at={agreement.warn_at:g})")


def in_full_precision(engine: Any, precision: Any) -> bool:
    """Whether sampling and training both compute with the weights as they are, and multiply float32 in full."""
    products = torch.get_float32_matmul_precision() == "highest"
    return products and getattr(engine, "is_exact", False) and precision in ("32-true", "64-true")
