"""Phase 1: fine-tune a language model on demonstrations. The result is the reference policy."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.functional.logprobs import perplexity
from rlhf_lightning.models import Pretrained
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.recipes import load_trained
from rlhf_lightning.modules.automatic import AutomaticModule
from rlhf_lightning.modules.base import OptimizerFactory, SchedulerFactory
from rlhf_lightning.types import SFTBatch


class SFTModule(AutomaticModule):
    """Token negative log-likelihood with teacher forcing, averaged over the supervised tokens of the whole global
    batch.

    Args:
        policy: a loading recipe or a causal language model.
        tokenizer: of the policy.
        optimizer: see `RLHFModule`.
        scheduler: see `RLHFModule`.
        max_grad_norm: see `RLHFModule`.
        max_skipped_steps: see `RLHFModule`.
    """

    stage, trains = "sft", "policy"
    counts: ClassVar = {"": "num_tokens"}

    def __init__(
        self,
        policy: Pretrained | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        max_grad_norm: float = 1.0,
        max_skipped_steps: int = 3,
    ) -> None:
        super().__init__(tokenizer, optimizer, scheduler, max_grad_norm, max_skipped_steps)
        self._source = (policy,)  # a tuple: Lightning would register a bare model
        self.policy: PreTrainedModel | None = None

    def build(self) -> None:
        """Load the policy."""
        self.policy = load_trained(self._source[0])

    def loss(self, batch: SFTBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Override to change the objective.

        Returns:
            the summed loss over this batch's tokens [], and sums to be averaged over tokens for the log.
        """
        assert self.policy is not None
        scored = token_scores(
            self.policy, batch.input_ids, batch.attention_mask, batch.mask, entropy=True, correct=True, summed=True
        )
        assert scored.correct is not None and scored.entropy is not None
        nll = -scored.logprobs.sum()
        sums = {
            "num_tokens": torch.tensor(len(scored.logprobs)),
            "loss": nll,
            "mean_token_accuracy": scored.correct.sum(),
            "entropy": scored.entropy.sum(),
        }
        return nll, sums

    def training_loss(self, batch: SFTBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The denominator makes accumulation and ranks average to the global token mean."""
        total, sums = self.loss(batch)
        return total / batch.denominator, sums

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Token means, perplexity and the token count."""
        return means | {"perplexity": perplexity(means["loss"])}
