"""Learn a policy from single answers that were called good or bad (Ethayarajh et al. 2024, arXiv:2402.01306)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kto import KTOLoss, kto_loss, kto_reference_point
from rlhf_lightning.functional.lengths import cut
from rlhf_lightning.metrics.means import Means
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules.base import OptimizerFactory, SchedulerFactory
from rlhf_lightning.modules.formulas import check_answer_loss
from rlhf_lightning.modules.offline import AnswerLogprobs, OfflineModule
from rlhf_lightning.types import AnswerBatch, FeedbackBatch

AnswerLoss = Callable[..., KTOLoss]


class KTOModule(OfflineModule):
    """KTO: raise good answers above a reference point and lower bad ones below it.

    The point is KL(policy || reference) as measured on prompts with the answers of other prompts, one number for the
    whole batch of an optimizer step, over all its micro-batches and ranks.

    Args:
        policy: a loading recipe or a causal language model.
        tokenizer: of the policy.
        optimizer: see `RLHFModule`.
        scheduler: see `RLHFModule`.
        loss: ``f(logprobs [N], ref_logprobs [N], desirable [N], reference_point [], *, denominator) -> KTOLoss``.
        reference: see `OfflineModule`.
        cache_reference: see `OfflineModule`; each epoch has its own pairs of prompts and mismatched completions, and
            all of them are asked about before.
        max_grad_norm: see `RLHFModule`.
        max_skipped_steps: see `RLHFModule`.

    Raises:
        ConfigError: the loss refuses its own numbers, or is called otherwise.
    """

    stage = "kto"
    counts: ClassVar = {"": "num_answers"} | {
        f"{name}/{side}": f"num_{side}" for name in ("rewards", "logps", "drift") for side in ("chosen", "rejected")
    }

    def __init__(
        self,
        policy: Pretrained | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss: AnswerLoss = kto_loss,
        reference: Pretrained | PreTrainedModel | None = None,
        cache_reference: bool = False,
        max_grad_norm: float = 1.0,
        max_skipped_steps: int = 3,
    ) -> None:
        check_answer_loss(loss)
        super().__init__(
            policy, tokenizer, optimizer, scheduler, reference, True, cache_reference, max_grad_norm, max_skipped_steps
        )
        self.loss = loss
        self._point = torch.zeros(())  # of the optimizer step that is being accumulated
        self._measured: AnswerBatch | None = None  # what it was measured on
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._mismatched = Means({"": "count"})

    def terms(
        self, answers: AnswerLogprobs, desirable: Tensor, point: Tensor, denominator: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Override to change the objective.

        Args:
            answers: log-probabilities of the answers, [N].
            desirable: bool [N].
            point: what gains and losses are measured from, nats [].
            denominator: answers of the whole batch, in the convention of `FeedbackBatch`.

        Returns:
            the loss [], whose mean over micro-batches and ranks is the mean over all answers, and sums for the log.
        """
        assert answers.reference is not None
        point = point.to(answers.policy)
        result = self.loss(answers.policy, answers.reference, desirable, point, denominator=denominator)
        drift = (answers.policy - answers.reference).detach()
        sums = {
            "num_answers": torch.tensor(len(desirable)),
            "loss": result.loss.detach() * denominator,
            "kl": point * len(desirable),
            "rewards/accuracies": torch.where(desirable, drift > point, drift < point).sum(),
        }
        for name, rows in (("chosen", desirable), ("rejected", ~desirable)):
            sums |= {
                f"num_{name}": rows.sum(),
                f"rewards/{name}": result.rewards[rows].sum(),
                f"logps/{name}": answers.policy[rows].sum(),
                f"drift/{name}": drift[rows].sum(),
            }
        return result.loss, sums

    def training_loss(self, batch: FeedbackBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The first micro-batch of an optimizer step also measures the reference point, where all ranks meet: once,
        even if this one does the step again."""
        is_known = self.splitting.again and batch.mismatched is self._measured
        if batch.mismatched is not None and not is_known:
            mismatched = self._without_grad(batch.mismatched, self._pieces(batch, training=True))
            self._point = kto_reference_point(*(self.ranks.gather(part).flatten() for part in mismatched))  # type: ignore[arg-type]
            self._measured = batch.mismatched
        answers, counted = self.logprobs(batch), batch.lengths > 0  # not those of padding rows
        assert answers.reference is not None
        answers = AnswerLogprobs(answers.policy[counted], answers.reference[counted])
        return self.terms(answers, batch.desirable[counted], self._point, batch.denominator)

    def on_validation_epoch_start(self) -> None:
        """Start from zero."""
        super().on_validation_epoch_start()
        self._seen = []
        self._mismatched.reset()

    def validate(self, batch: FeedbackBatch) -> None:
        """Keep the log-probabilities: the reference point is known when all batches were seen."""
        counted = batch.lengths > 0
        answers = self.logprobs(batch)
        assert answers.reference is not None
        gap = self._gap(batch) if batch.mismatched is not None else answers.policy[:0]
        self._seen.append((answers.policy[counted], answers.reference[counted], batch.desirable[counted]))
        self._mismatched.update({"count": torch.tensor(len(gap)), "gap": gap.sum()})

    def on_validation_epoch_end(self) -> None:
        """Log means over the whole validation set of all ranks, with one reference point for all of it."""
        if not self._seen:
            return
        point = torch.tensor(max(self._mismatched.compute()["gap"], 0.0))
        policy, reference, desirable = (torch.cat(column) for column in zip(*self._seen, strict=True))
        self.val_means.update(self.terms(AnswerLogprobs(policy, reference), desirable, point, 1.0)[1])
        super().on_validation_epoch_end()

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Means over answers; rewards, log-probabilities and drift over the good (chosen) or bad (rejected) ones."""
        empty = [count for count in ("num_chosen", "num_rejected") if not means[count]]
        if not empty:
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return {name: mean for name, mean in means.items() if self.counts.get(name, "") not in empty}

    def answers_of(self, batch: FeedbackBatch, *, training: bool) -> Iterator[AnswerBatch]:
        """See `OfflineModule`; mismatched completions first."""
        if batch.mismatched is not None:
            yield from _cut(batch.mismatched, self._pieces(batch, training=training))[0]
        yield batch

    def passes(self) -> int:
        """See `OfflineModule`; the order of an epoch decides which completion stands behind which prompt."""
        trainer = self.trainer
        number = trainer.max_epochs
        if trainer.max_steps > 0:
            needed = -(-trainer.max_steps * trainer.accumulate_grad_batches // int(trainer.num_training_batches))
            number = min(number, needed) if number and number > 0 else needed
        if not number or number < 0:
            raise ConfigError("kto.cache_reference=true needs a number of epochs or steps; set max_epochs")
        return number

    def _gap(self, batch: FeedbackBatch) -> Tensor:
        """How much more likely than under the reference mismatched completions are, [N]."""
        assert batch.mismatched is not None
        found = self._without_grad(batch.mismatched, self._pieces(batch, training=False))
        assert found.reference is not None
        return (found.policy - found.reference)[batch.mismatched.lengths > 0]

    def _pieces(self, batch: FeedbackBatch, *, training: bool) -> int:
        """Into how many pieces the mismatched completions are cut, so that each is about as large as the batch."""
        assert batch.mismatched is not None
        if training:
            return self.splitting.pieces(batch.mismatched, self.trainer.accumulate_grad_batches)
        return -(-len(batch.mismatched.lengths) // len(batch.lengths))

    @torch.no_grad()
    def _without_grad(self, answers: AnswerBatch, pieces: int) -> AnswerLogprobs:
        """`logprobs` of many answers, a piece at a time."""
        parts, back = _cut(answers, pieces)
        found = [self.logprobs(part) for part in parts]
        return AnswerLogprobs(*(torch.cat(column)[back] for column in zip(*found, strict=True)))


def _cut(answers: AnswerBatch, pieces: int) -> tuple[list[AnswerBatch], Tensor]:
    """Answers cut by length into as many pieces on every rank, and where each answer is in these; long [N]."""
    lengths = answers.attention_mask.sum(1)
    groups = [torch.tensor(rows) for rows in cut(lengths, min(pieces, len(lengths)))]
    return [answers.select(rows).trimmed() for rows in groups], torch.cat(groups).argsort().to(lengths.device)
