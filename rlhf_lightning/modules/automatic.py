"""Learning from given batches with Lightning's automatic optimisation: one loss, means over whole optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.metrics.means import Means
from rlhf_lightning.modules.base import OptimizerFactory, RLHFModule, SchedulerFactory
from rlhf_lightning.private_api.lightning import trainer_of
from rlhf_lightning.training.smaller_batches import Splitting


class AutomaticModule(RLHFModule):
    """Base of `SFTModule`, `RewardModule`, `DPOModule` and `KTOModule`: `training_loss` and `counts` make a phase.

    Args:
        tokenizer: see `RLHFModule`.
        optimizer: see `RLHFModule`.
        scheduler: see `RLHFModule`.
        max_grad_norm: see `RLHFModule`.
        max_skipped_steps: see `RLHFModule`.
    """

    counts: ClassVar[Mapping[str, str]]  # which sum for the log is divided by which, see `Means`; set by each phase

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        max_grad_norm: float,
        max_skipped_steps: int,
    ) -> None:
        super().__init__(tokenizer, optimizer, scheduler, max_grad_norm, max_skipped_steps)
        self.splitting = Splitting(self.stage)
        self.train_means, self.val_means = Means(self.counts), Means(self.counts)
        self._positions = Means({"": "count"})
        self._apart = False  # whether the backward at hand is the last of a step, and gradients are averaged behind it

    def setup(self, stage: str) -> None:
        """Means are over the ranks of this trainer, and not over others that have met and train nothing here."""
        for part in self.modules():
            if isinstance(part, Means):
                part.alone = self.ranks.size == 1

    def training_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch [], a sum over its ``denominator``, and sums for the log.

        Where memory runs out, a rank calls it again with parts of the micro-batch, while the others do not.
        """
        raise NotImplementedError

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Look how large the micro-batch is before ranks agree on how its gradients are averaged."""
        if hasattr(batch, "input_ids"):  # not for a `training_step` that computes its loss in another way
            self.splitting.expect(batch, first=self._is_first(batch_idx))

    def _is_first(self, batch_idx: int) -> bool:
        """Of the micro-batches of an optimizer step."""
        return batch_idx % self.trainer.accumulate_grad_batches == 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """One micro-batch, see `training_loss`; in parts where memory does not suffice for the whole."""
        if trainer_of(self) is None:
            return self.training_loss(batch)[0]
        real = batch.attention_mask
        self._positions.update({"padding": (~real).sum(), "count": torch.tensor(real.numel())})
        first = self._is_first(batch_idx)
        if first:
            self.guard.restart()
        return self.splitting.forward(batch, self._recorded_loss, self.ranks, first=first)

    def _recorded_loss(self, batch: Any) -> Tensor:
        """`training_loss`, noted for the log and for the guard."""
        with self.trainer.precision_plugin.train_step_context():
            loss, sums = self.training_loss(batch)
        self.train_means.update(sums)
        self.guard.record(batch, loss)
        return loss

    def _restart_step(self) -> None:
        """Forget the optimizer step at hand, which is done again."""
        self.trainer.optimizers[0].zero_grad()
        self.train_means.reset()
        self.guard.restart()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """One batch, see `validate`; in parts where memory does not suffice for the whole."""
        self.splitting.validate(batch, self.validate, self.ranks)

    def validate(self, batch: Any) -> None:
        """Add a batch, or a part of one, to the means over the whole validation set."""
        self.val_means.update(self.training_loss(batch)[1])

    def backward(self, loss: Tensor, *args: Any) -> None:
        """See `Splitting`."""
        self.splitting.backward(loss, self._restart_step)
        if self._apart:
            self.ranks.average_gradients(self.parameters())

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """See `RLHFModule`; here a step begins."""
        self.guard.begin()
        super().on_before_optimizer_step(optimizer)

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """What is logged of the means over all ranks. Override to add what follows from them."""
        return means

    def optimizer_step(self, *given: Any) -> None:
        """Lightning's, then the log: callbacks find the means of this step when its batch ends.

        Where a micro-batch of any rank is larger than what it has had memory for, gradients are averaged behind the
        last backward, so that each rank may do it again in parts. Else DDP averages inside of it.
        """
        self._apart = self.ranks.averages and self.ranks.any(self.splitting.is_unproven())
        with self.ranks.accumulating(last=not self._apart):
            super().optimizer_step(*given)
        if not self.guard.failed:
            self.splitting.passed(self.ranks, apart=self._apart)
        self._apart = False
        self.log_step()

    def log_step(self) -> None:
        """Log the means over all micro-batches of an optimizer step."""
        logged = self.guard.logged()
        if not self.guard.failed:  # its numbers would spoil every mean
            if self.train_means.update_called:  # not by a `training_step` that computes its loss in another way
                logged |= {f"train/{name}": value for name, value in self.summary(self.train_means.compute()).items()}
            if self._positions.update_called:
                logged["train/padding"] = self._positions.compute()["padding"]
            logged |= {"train/grad_norm": float(self._grad_norm), "train/learning_rate": self.learning_rate}
            logged |= self.splitting.logged()
        self.log_dict(logged)
        self.train_means.reset()
        self._positions.reset()

    def on_validation_epoch_start(self) -> None:
        """Start from zero."""
        self.val_means.reset()

    def on_validation_epoch_end(self) -> None:
        """Log means over the whole validation set of all ranks."""
        if self.val_means.update_called:
            self.log_dict({f"val/{name}": value for name, value in self.summary(self.val_means.compute()).items()})
