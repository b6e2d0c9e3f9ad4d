"""Frozen models (reference, reward model) that Lightning must not see.

Registered submodules would enter `state_dict`, DDP buckets, the optimizer and every checkpoint, and Lightning would
switch them to train mode. A holder that is no `nn.Module` keeps them out; it moves them to the device itself.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_lightning.models.adapters import adapted_layers
from rlhf_lightning.models.resting import Resting

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_LOOKED_AT = 64  # numbers of each tensor
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FrozenModels:
    """Named models in eval mode without gradients; assign one to a LightningModule attribute freely."""

    def __init__(self) -> None:
        self._models: dict[str, nn.Module] = {}
        self._resting: dict[str, Resting] = {}
        self._fingerprints: dict[str, str] = {}

    def add(self, name: str, model: nn.Module, *, offload: bool = False, beside: nn.Module | None = None) -> None:
        """Freeze ``model`` and keep it under ``name``; with ``offload`` as a `Resting` model ``beside`` another."""
        self._models[name] = model.eval().requires_grad_(False)
        if not any(weight.is_meta for weight in model.parameters()):
            self._fingerprints[name] = fingerprint(model)
        if offload:
            self._resting[name] = Resting(model, beside)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the models as they were added, or else as they were read. Collective for those that are sharded."""
        for name in self._models.keys() - self._fingerprints.keys():
            self._fingerprints[name] = fingerprint(self._models[name])
        return self._fingerprints

    def awake(self, name: str) -> AbstractContextManager[None]:
        """Have a model on the device, see `Resting`; any other is there all the time."""
        return self._resting[name].awake() if name in self._resting else nullcontext()

    def drop(self, name: str) -> None:
        """Let a model go; its fingerprint stays."""
        assert name in self.fingerprints
        del self._models[name]

    def __getitem__(self, name: str) -> nn.Module:
        return self._models[name]

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def to(self, where: torch.device | torch.dtype | str) -> FrozenModels:
        """Move every model to a device or dtype; returns self."""
        for name, model in self._models.items():
            if name in self._resting and not isinstance(where, torch.dtype):
                self._resting[name].to(where)
            else:
                model.to(where)
        return self


def fingerprint(model: nn.Module) -> str:
    """What tells a model from others of its shape in no time: SHA-256 of the names and of a few numbers of each tensor.

    Take it of a model as it was loaded: another dtype has other numbers.

    >>> model = nn.Linear(2, 1)
    >>> before = fingerprint(model)
    >>> fingerprint(model.requires_grad_(False)) == before, fingerprint(nn.Linear(2, 1)) == before
    (True, False)
    """
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        numbers = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().flatten()
        few = numbers[:: max(len(numbers) // _LOOKED_AT, 1)].double().cpu()
        found.update(f"{name} {list(tensor.shape)}".encode() + few.numpy().tobytes())
    return found.hexdigest()


def checksum(weights: Mapping[str, Tensor]) -> str:
    """What tells weights from others to the last bit: SHA-256 of names, shapes, dtypes, and of the sum of each tensor's
    numbers, taken as integers, modulo 2^64. It is the same however they are sharded; nothing is gathered. Collective
    where they are.

    >>> weights = {"a": torch.ones(4, 2)}
    >>> before = checksum(weights)
    >>> weights["a"][3, 1] += 1e-6
    >>> checksum(weights) == before
    False
    """
    found = hashlib.sha256()
    for name, tensor in weights.items():
        local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().contiguous()
        total = local.view(_INTEGERS[local.element_size()]).sum(dtype=torch.int64)
        if isinstance(tensor, DTensor):
            for dim, place in enumerate(tensor.placements):
                if place.is_shard():  # else there are copies
                    torch.distributed.all_reduce(total, group=tensor.device_mesh.get_group(dim))
        found.update(f"{name} {list(tensor.shape)} {tensor.dtype} {int(total)}".encode())
    return found.hexdigest()


def frozen_copy(model: ModuleT) -> ModuleT:
    """A copy in eval mode without gradients. Parameters that are already frozen are shared, not copied.

    The copy of a model with adapters is the model that it was without them, and shares all its weights.
    """
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    for layer in adapted_layers(model).values():
        shared[id(layer)] = copy.deepcopy(layer.base_layer, shared)
    copied = copy.deepcopy(model, shared).eval().requires_grad_(False)
    if vars(copied).pop("lora", None) is not None:
        vars(copied).pop("unread", None)  # the model reads them for both
    return copied
