"""Learn a policy from comparisons, without a reward model: DPO (arXiv:2305.18290) and its relatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.masking import divide_by_count
from rlhf_lightning.functional.preference import PreferenceLoss, dpo_loss
from rlhf_lightning.functional.reward import kwise_pairs
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules.base import OptimizerFactory, SchedulerFactory
from rlhf_lightning.modules.formulas import check_pair_loss
from rlhf_lightning.modules.offline import AnswerLogprobs, OfflineModule
from rlhf_lightning.rules.partials import called
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import ComparisonBatch

PairLoss = Callable[..., PreferenceLoss]


class DPOModule(OfflineModule):
    """Raise the probability of preferred answers over that of others, relative to a reference or by itself.

        total = loss_coef * loss + nll_coef * NLL of the best answers

    Both are means over prompts: of all pairs of the prompt's answers, and of the nats per token of its best answers.

    Args:
        policy: a loading recipe or a causal language model.
        tokenizer: of the policy.
        optimizer: see `RLHFModule`.
        scheduler: see `RLHFModule`.
        loss: a function of `rlhf_lightning.functional.preference` or `.reference_free`, or one with their signature;
            one that can be called with None for the reference's log-probabilities gets no reference.
        reference: see `OfflineModule`.
        cache_reference: see `OfflineModule`.
        loss_coef: factor of the comparing part.
        nll_coef: factor of the NLL, which keeps the good answers likely; 1 in ORPO, 0 in DPO.
        max_grad_norm: see `RLHFModule`.
        max_skipped_steps: see `RLHFModule`.

    Raises:
        ConfigError: the loss refuses its own numbers, is called otherwise, or has no use for the reference given.
    """

    stage = "dpo"
    counts: ClassVar = {"": "num_pairs", "loss": "num_prompts", "nll": "num_prompts"}

    def __init__(
        self,
        policy: Pretrained | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss: PairLoss = dpo_loss,
        reference: Pretrained | PreTrainedModel | None = None,
        cache_reference: bool = False,
        loss_coef: float = 1.0,
        nll_coef: float = 0.0,
        max_grad_norm: float = 1.0,
        max_skipped_steps: int = 3,
    ) -> None:
        has_reference = check_pair_loss(loss)
        if reference is not None and not has_reference:
            raise ConfigError(f"{called(loss)} compares answers without a reference; leave `reference` out (null)")
        require("loss_coef", loss_coef, at_least=0)
        require("nll_coef", nll_coef, at_least=0)
        if loss_coef == nll_coef == 0:
            raise ConfigError("loss_coef=0, nll_coef=0: set one of them above 0")
        super().__init__(
            policy, tokenizer, optimizer, scheduler, reference, has_reference, cache_reference, max_grad_norm,
            max_skipped_steps,
        )  # fmt: skip
        self.loss = loss
        self.loss_coef, self.nll_coef = loss_coef, nll_coef

    def terms(self, batch: ComparisonBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Override to change the objective.

        Returns:
            the loss [], whose mean over micro-batches and ranks is the mean over all prompts, and sums for the log.
        """
        answers = self.logprobs(batch)
        better, worse, prompt = kwise_pairs(batch.ranks, batch.prompt_index)
        chosen, rejected = _rows(answers, better), _rows(answers, worse)
        result = self.loss(
            chosen.policy,
            rejected.policy,
            chosen.reference,
            rejected.reference,
            batch.counted[better],
            batch.counted[worse],
            weights=1 / torch.bincount(prompt)[prompt],
            denominator=batch.denominator,
        )
        nll = self._nll(answers.policy, batch, prompt)
        total = self.loss_coef * result.loss + self.nll_coef * nll
        sums = {
            "num_pairs": torch.tensor(len(better)),
            "num_prompts": torch.tensor(batch.num_prompts),
            "loss": total.detach() * batch.denominator,
            "nll": nll.detach() * batch.denominator,
            "tie_rate": (result.chosen_rewards == result.rejected_rewards).sum(),
            "rewards/accuracies": (result.chosen_rewards > result.rejected_rewards).sum(),
            "rewards/margins": (result.chosen_rewards - result.rejected_rewards).sum(),
        }
        for name, side, rewards in (
            ("chosen", chosen, result.chosen_rewards),
            ("rejected", rejected, result.rejected_rewards),
        ):
            sums |= {f"rewards/{name}": rewards.sum(), f"logps/{name}": side.policy.sum()}
            if side.reference is not None:
                sums[f"drift/{name}"] = (side.policy - side.reference).sum()
        return total, sums

    def training_loss(self, batch: ComparisonBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of whole rankings."""
        return self.terms(batch)

    def _nll(self, logprobs: Tensor, batch: ComparisonBatch, prompt: Tensor) -> Tensor:
        """Nats per token of the answers ranked first, mean over prompts that have a pair; []."""
        compared = torch.zeros_like(batch.prompt_index, dtype=torch.bool)
        compared[prompt] = True  # by prompt: there are at most as many as answers
        best = ((batch.ranks == 1) & compared[batch.prompt_index]).nonzero().squeeze(1)
        owner = batch.prompt_index[best]
        per_token = -logprobs[best] / batch.counted[best].clamp(min=1)
        return divide_by_count((per_token / torch.bincount(owner)[owner]).sum(), batch.denominator)


def _rows(answers: AnswerLogprobs, rows: Tensor) -> AnswerLogprobs:
    return AnswerLogprobs(answers.policy[rows], None if answers.reference is None else answers.reference[rows])
