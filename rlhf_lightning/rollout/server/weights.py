"""The weights of a policy as files for a server: a decoder layer at a time, whole, under the names of the model."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rlhf_lightning.checkpoint.provenance import sha256
from rlhf_lightning.errors import DiskError
from rlhf_lightning.models.adapters import merged, save_adapter

ADAPTER = "policy-adapter"  # by which requests name it
RAM_DISK = Path("/dev/shm")
_LAYER = re.compile(r".*?\.\d+\.")


class Written(NamedTuple):
    """Weights on disk."""

    folder: Path
    files: list[dict[str, str]]  # path and sha256 of each
    version: str  # optimizer steps, and a hash of the files


class WeightFolder:
    """Where weights lie until a server has read them: two versions at most, each in a folder of a new name.

    It is removed when this process ends, and of one that was killed when the next begins.

    Args:
        folder: of the run; the weights stand in its ``weights``.
        ram_disk: take a folder of the RAM disk instead, if there is one with room.
        size: bytes of a version.

    Raises:
        DiskError: it cannot be made, or belongs to somebody else.
    """

    def __init__(self, folder: Path, ram_disk: bool, size: int) -> None:
        self.path = folder.absolute() / "weights"
        if ram_disk and os.access(RAM_DISK, os.W_OK) and shutil.disk_usage(RAM_DISK).free > 3 * size:
            name = hashlib.sha256(str(self.path).encode()).hexdigest()[:16]
            self.path = RAM_DISK / f"rlhf_lightning-{os.getuid()}-{name}"
        try:
            _remove(self.path, os.getpid())  # of a run that was killed
            self.path.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise DiskError(f"rollout.folder: {self.path} cannot be made ({error})") from error
        self.remove = weakref.finalize(self, _remove, self.path, os.getpid())
        self._made: list[Path] = []

    def new(self, version: int) -> Path:
        """An empty folder; the one before the last is removed."""
        for old in self._made[:-1]:
            shutil.rmtree(old, ignore_errors=True)
        self._made = [*self._made[-1:], Path(tempfile.mkdtemp(prefix=f"{version}-", dir=self.path))]
        return self._made[-1]


def write_weights(policy: PreTrainedModel, folder: Path | None, version: int) -> Written | None:
    """Write the whole model, adapters merged into its weights. Collective where it is sharded.

    Args:
        policy: whose weights.
        folder: where to; None takes part in the gathering only.
        version: optimizer steps of the policy.

    Raises:
        DiskError: the disk does not take them.
    """
    files: list[dict[str, str]] = []
    fault: OSError | None = None
    for number, part in enumerate(whole_layers(policy)):
        if folder is None or fault is not None:
            continue  # the other ranks are in the loop
        path = folder / f"model-{number:05d}.safetensors"
        try:
            save_file(merged(policy, part), path, metadata={"format": "pt"})
            files.append({"path": str(path), "sha256": sha256(path)})
        except OSError as error:
            fault = error
    return _written(folder, files, version, fault)


def write_adapter(policy: PreTrainedModel, folder: Path | None, version: int) -> Written | None:
    """The same for the adapters alone, as peft reads them."""
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    weights = {name: w for part in whole_layers(policy, trained) for name, w in part.items()}
    files, fault = [], None
    if folder is not None:
        try:
            save_adapter(policy, weights, folder)
            files = [{"path": str(path), "sha256": sha256(path)} for path in sorted(folder.iterdir())]
        except OSError as error:
            fault = error
    return _written(folder, files, version, fault)


@torch.no_grad()
def whole_layers(model: nn.Module, names: set[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """State dicts of a decoder layer each, and of what stands between them, whole and on the CPU.

    Collective where weights are sharded. A weight under several names comes under its first.

    Args:
        model: any.
        names: which weights; None gives all.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    first = dict(model.named_parameters())
    state = {name: w for name, w in model.state_dict().items() if name in first or name not in every}
    chosen = [name for name in state if names is None or name in names]
    for _, group in groupby(chosen, key=lambda name: (found := _LAYER.match(name)) and found[0]):
        yield {name: _whole(state[name]).cpu().contiguous() for name in group}


def size_of(model: nn.Module) -> int:
    """Bytes of all weights, whole."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _remove(path: Path, owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process that made it
        return
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _whole(weight: Tensor) -> Tensor:
    if not isinstance(weight, DTensor):
        return weight
    on_device: Tensor = weight.to(weight.device_mesh.device_type)
    return on_device.full_tensor()  # type: ignore[attr-defined]


def _written(folder: Path | None, files: list[dict[str, str]], version: int, fault: OSError | None) -> Written | None:
    if fault is not None:
        raise DiskError(
            f"rollout.folder: {folder} does not take the weights ({fault}); see rollout.ram_disk"
        ) from fault
    if folder is None:
        return None
    content = hashlib.sha256("".join(file["sha256"] for file in files).encode()).hexdigest()
    return Written(folder, files, f"{version}-{content[:16]}")
