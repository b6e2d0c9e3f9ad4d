"""A checkpoint of another model is refused by name and shape, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import lightning
from torch import Tensor

from rlhf_lightning.errors import CheckpointError


def refuse_other_weights(stored: Mapping[str, Tensor] | None, module: lightning.LightningModule) -> None:
    """Compare the weights of a checkpoint with those of the model that would take them.

    Args:
        stored: by name, any shapes; None where the strategy has loaded them already.
        module: what would take them; one that is not strict takes whatever is there.

    Raises:
        CheckpointError: names or shapes differ; names the first of them.
    """
    if stored is None or not module.strict_loading:
        return
    found = {name: list(tensor.shape) for name, tensor in stored.items()}
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    differing = [
        f"{name} is {found.get(name, 'not there')} in the checkpoint and {wanted.get(name, 'not there')} in the model"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise CheckpointError(
            f"this checkpoint is of another model: {differing[0]}{more}; give the model it was made with, or start a "
            "new run"
        )
