"""The value before training, without which no curve says what training has brought."""

from __future__ import annotations

import lightning.pytorch as pl

from rlhf_lightning.private_api.lightning import validate_now
from rlhf_lightning.training.random_state import random_state, restore_random_state


class ValidateFirst(pl.Callback):
    """Validate once before the first step, logged at step 0; a resumed fit does not.

    Nothing that is trained changes: random streams are put back. It costs one pass over the held-out rows; leave it out
    with ``~callbacks.validate_first``.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step or trainer.current_epoch:
            return
        before = random_state(pl_module.device)
        validate_now(trainer)
        restore_random_state(before, pl_module.device)
