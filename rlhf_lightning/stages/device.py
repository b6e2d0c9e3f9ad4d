"""What a config leaves to the device of the run, decided once, before the first stage."""

from __future__ import annotations

import torch

from rlhf_lightning.config.judging import Judged


def settled(config: Judged) -> Judged:
    """The config with what ``trainer.precision=null`` means, so that the run's folder and a resumed run have it too.

    A CUDA device that computes in bfloat16 gets ``bf16-mixed``, any other ``32-true``. On CUDA float32 products are
    computed as ``matmul_precision`` says.

    Args:
        config: resolved. A Trainer with plugins has its precision from them, if from anywhere.
    """
    trainer = config["trainer"]
    cuda = trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.set_float32_matmul_precision(config["matmul_precision"])
    if trainer.get("precision") or trainer.get("plugins"):
        return config
    precision = "bf16-mixed" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    changed = {**config, "trainer": {**trainer, "precision": precision}}
    return Judged(changed, to_run=config.to_run, overrides=config.overrides)
