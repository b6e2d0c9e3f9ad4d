"""PPO-ptx: the policy goes on fitting texts while it learns from a reward.

Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5 and appendix C.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.loader import MICRO_BATCHES
from rlhf_lightning.errors import ConfigError, OutOfMemory
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.memory import fits
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.training.smaller_batches import ADVICE
from rlhf_lightning.types import SFTBatch


class PretrainingMix(pl.Callback):
    """Adds ``coef`` times the mean negative log-likelihood of a batch of rows to every optimizer step of PPO.

    The rows of a step follow from its number, so a resumed run sees those an uninterrupted one would have seen. A step
    that was given up, or that stopped at ``max_approx_kl``, leaves its rows to the next one.

    Args:
        data: rows to fit, ``data.batch_size`` per optimizer step over all ranks; rows of ``text`` are fitted whole, of
            others the completion.
        coef: weight of a nat per token beside the policy loss.

    Raises:
        ConfigError: the module does not learn online.
    """

    def __init__(self, data: DemonstrationData, coef: float) -> None:
        require("ppo.pretraining.coef", coef, at_least=0)
        self.data = data
        self.coef = coef

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Read the rows, and let the module take them."""
        if not hasattr(pl_module, "pretraining"):
            raise ConfigError(
                f"PretrainingMix: {type(pl_module).__name__} does not learn online; use it with PPOModule"
            )
        self.data.trainer = trainer
        self.data.setup("fit")
        pl_module.pretraining = self.accumulate

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._loader = self.data.train_dataloader()

    def accumulate(self, module: Any) -> Tensor:
        """Add the gradients of an optimizer step; returns this rank's share of the mean loss [], nats per token.

        Raises:
            OutOfMemory: its rows do not fit, which smaller micro-batches of the rollout would not mend.
        """
        total, loader = torch.zeros((), device=module.device), self._loader
        loader.load_state_dict({"position": module.optimizer_steps * loader.accumulate})

        def add(batch: SFTBatch) -> None:
            with module.ranks.accumulating(last=False):
                scored = token_scores(module.policy, batch.input_ids, batch.attention_mask, batch.mask, summed=True)
                share = -scored.logprobs.sum() / (batch.denominator * loader.accumulate * module.ranks.size)
                module.manual_backward(self.coef * share * module.ranks.size)  # ranks are averaged
            total.add_(share.detach())

        for _ in range(loader.accumulate):
            batch = loader.draw().to(module.device)
            if not fits(partial(add, batch)):
                rows, tokens = batch.input_ids.shape
                advice = ADVICE.format("ppo.pretraining.data", "ppo.pretraining.data.max_length")
                raise OutOfMemory(f"ppo.pretraining: out of memory with {rows} rows of {tokens} tokens; {advice}")
        return total

    def state_dict(self) -> dict[str, Any]:
        """Which rows they are and how they are cut."""
        return self.data.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse other rows than those of the checkpoint, once they are read."""
        micro_batches = {MICRO_BATCHES: self.data.accumulate} if state_dict else {}  # the step says where its rows are
        self.data.load_state_dict({**state_dict, **micro_batches})
