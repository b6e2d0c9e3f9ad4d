"""A quiet console: the advice of other libraries is not shown beside our own lines. Imports none of them."""

from __future__ import annotations

import logging
import os
import warnings

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # otherwise tokenizers warns at every fork
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # read by TensorBoard's TensorFlow stub
}
# Children of the loggers Lightning configures when imported; a level set here before survives that.
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.distributed",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
)
_WARNINGS = (
    r".*does not have many workers.*",  # our loaders read from memory
    r".*available but not used.*",  # the accelerator was chosen on purpose
    r"Checkpoint directory .* exists and is not empty",
    r"You passed in a `val_dataloader` but have no `validation_step`.*",  # PPO is judged by the evaluate stage
    r"predict returned None.*",  # answers are collected by the module
    r"It is recommended to use `self\.log\(.*sync_dist=True.*",  # what we log is summed over ranks already
    r".*LeafSpec.*",  # Lightning uses an API that torch announces to change
)


def quiet() -> None:
    """Silence tips, download bars and known harmless warnings. Call it before torch or Lightning is imported.

    A variable of the environment that is already set stays as it is.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
