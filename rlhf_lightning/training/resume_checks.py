"""A checkpoint of another model is refused by name and shape, one beside other frozen models by what they weigh."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import lightning
from torch import Tensor

from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.models import FrozenModels
from rlhf_lightning.models.adapters import learned_state
from rlhf_lightning.models.frozen import checksum

BASE = "base model below the adapters"
_bases: WeakKeyDictionary[lightning.LightningModule, str] = WeakKeyDictionary()  # checksums, which take a while


def fingerprints(module: lightning.LightningModule) -> dict[str, str]:
    """Of what is frozen in a module, by name; a checkpoint holds these in place of the weights. Collective."""
    frozen = getattr(module, "frozen", None)
    found = dict(frozen.fingerprints) if isinstance(frozen, FrozenModels) else {}
    if module not in _bases and (base := base_weights(module)):
        _bases[module] = checksum(base)
    return found | ({BASE: _bases[module]} if module in _bases else {})


def base_weights(module: lightning.LightningModule) -> dict[str, Tensor]:
    """What of a module's state lies below adapters, and does not learn; nothing without adapters."""
    learned = learned_state(module)
    return {name: value for name, value in module.state_dict().items() if name not in learned}


def refuse_other_frozen(stored: Mapping[str, str], module: lightning.LightningModule) -> None:
    """Compare the frozen models of a module with those that a checkpoint was written beside.

    Args:
        stored: `fingerprints`, from the checkpoint.
        module: what goes on from it.

    Raises:
        CheckpointError: one of them has other weights; names it.
    """
    for name, found in fingerprints(module).items():
        if stored.get(name, found) != found:
            raise CheckpointError(
                f"the {name} has other weights than when this checkpoint was written: the rest of the run would "
                "go on with another model; give the folder it began with, unchanged, or start a new run"
            )


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
