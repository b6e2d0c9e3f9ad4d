"""Phase 1: fine-tune a language model on demonstrations. The result is the reference policy."""

from __future__ import annotations

import math

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.functional.masking import masked_sum
from rlhf_lightning.functional.sequences import position_ids
from rlhf_lightning.functional.sft import token_nll
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules.base import OptimizerFactory, RLHFModule, SchedulerFactory, load_policy
from rlhf_lightning.modules.totals import Totals
from rlhf_lightning.types import SFTBatch


class SFTModule(RLHFModule):
    """Token negative log-likelihood with teacher forcing, averaged over the supervised tokens of the whole global
    batch.

    Args:
        policy: a loading recipe or a causal language model.
        tokenizer: of the policy.
        optimizer: see `RLHFModule`.
        scheduler: see `RLHFModule`.
        max_grad_norm: see `RLHFModule`.
    """

    trains = "policy"

    def __init__(
        self,
        policy: Pretrained | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        max_grad_norm: float = 1.0,
    ) -> None:
        super().__init__(tokenizer, optimizer, scheduler, max_grad_norm)
        self._source = (policy,)  # a tuple: Lightning would register a bare model
        self.policy: PreTrainedModel | None = None

    def build(self) -> None:
        """Load the policy."""
        self.policy = load_policy(self._source[0])

    def loss(self, batch: SFTBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Override to change the objective.

        Returns:
            the summed loss over this batch's tokens [], and sums to be averaged over tokens for the log.
        """
        assert self.policy is not None
        logits = self.policy(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            position_ids=position_ids(batch.attention_mask),
            use_cache=False,
        ).logits
        scored = token_nll(logits, batch.input_ids, batch.mask)
        nll = masked_sum(scored.nll, scored.mask)
        sums = {
            "num_tokens": scored.mask.sum(),
            "loss": nll,
            "mean_token_accuracy": masked_sum(scored.correct.float(), scored.mask),
            "entropy": masked_sum(scored.entropy, scored.mask),
        }
        return nll, sums

    def training_step(self, batch: SFTBatch, batch_idx: int) -> Tensor:
        """One micro-batch; the denominator makes accumulation and ranks average to the global token mean."""
        total, sums = self.loss(batch)
        self.train_totals.add(sums)
        return total / batch.denominator

    def validation_step(self, batch: SFTBatch, batch_idx: int) -> None:
        """Add one batch to the totals of the whole validation set."""
        self.val_totals.add(self.loss(batch)[1])

    def summary(self, totals: Totals) -> dict[str, float]:
        """Token means, perplexity and the token count."""
        means = totals.means(self, "num_tokens")
        return means | {"perplexity": math.exp(min(means["loss"], 700.0))}
