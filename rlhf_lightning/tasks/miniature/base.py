"""The base model of the miniature task, trained from scratch on its texts with the library's own SFT phase."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

log = logging.getLogger(__name__)


def train_with_sft(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Path) -> None:
    """Train ``model`` in place on a file of ``text`` rows; some ten seconds on one core."""
    import lightning
    import torch

    from rlhf_lightning.callbacks import StopAtBoundary
    from rlhf_lightning.data.demonstrations import DemonstrationData
    from rlhf_lightning.modules import SFTModule
    from rlhf_lightning.optim import schedules

    log.info("preparing the miniature task: its base model is trained, once, in about ten seconds")
    data = DemonstrationData(
        texts, None, tokenizer, batch_size=32, max_length=48, validation_fraction=0.0, on_long="truncate"
    )
    module = SFTModule(
        model,
        tokenizer,
        optimizer=partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.0),
        scheduler=partial(schedules.linear, warmup_ratio=0.05),
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        callbacks=[StopAtBoundary()],
    )
    reader = logging.getLogger("rlhf_lightning.data.base")  # which of its own texts are long is nobody's business
    before = reader.level
    reader.setLevel(logging.ERROR)
    try:
        trainer.fit(module, datamodule=data)
    finally:
        reader.setLevel(before)
