"""FSDP2 with checkpoint folders: every process writes and reads its own rows of weights and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from rlhf_lightning.checkpoint.codec import read_tensors
from rlhf_lightning.checkpoint.io import DurableCheckpointIO
from rlhf_lightning.checkpoint.processes import together
from rlhf_lightning.checkpoint.tensors import Stored, own_rows, part_of
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.private_api.lightning import share_among_all
from rlhf_lightning.rules.placement import check_replicas
from rlhf_lightning.rules.ranges import require

CPU = torch.device("cpu")


class DurableModelParallelStrategy(ModelParallelStrategy):
    """`ModelParallelStrategy` whose checkpoints are verified folders that any number of processes can read.

    Nothing is gathered: every process writes the rows that it has, and reads those that it will have.

    Args:
        data_parallel_size: processes that learn from data of their own; None: all of all nodes.
        process_group_backend: by which they talk; None: that of the device.
        timeout: in which a process must answer the others, as long as nothing is saved; see
            `rlhf_lightning.checkpoint.processes.LONGEST`.
        replicate_size: copies of the weights, each in shards on consecutive processes: 1 shards among all of them, the
            number of nodes inside of each. Gradients are summed inside of a copy, then over the copies (hybrid
            sharding, Zhao et al. 2023, "PyTorch FSDP", section 3.2.2).

    Raises:
        ConfigError: the copies do not divide the processes.
    """

    def __init__(
        self,
        data_parallel_size: int | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=5),
        replicate_size: int = 1,
    ) -> None:
        require("replicate_size", replicate_size, at_least=1)
        among_all: Any = data_parallel_size  # None: until `setup_environment` knows their number
        super().__init__(among_all, 1, False, process_group_backend, timeout)
        self.replicate_size = replicate_size
        self.weights_mesh: DeviceMesh | None = None

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Weights and optimizer state take the way they take without sharding."""
        return True

    lightning_module_state_dict = ParallelStrategy.lightning_module_state_dict
    load_model_state_dict = ParallelStrategy.load_model_state_dict
    optimizer_state = ParallelStrategy.optimizer_state
    load_optimizer_state_dict = ParallelStrategy.load_optimizer_state_dict

    def setup_environment(self) -> None:
        """Meet the other processes."""
        share_among_all(self)
        super().setup_environment()
        self.weights_mesh = self.device_mesh["data_parallel"]
        if self.replicate_size > 1:
            check_replicas(self.replicate_size, self.world_size)
            sizes = (self.replicate_size, self.world_size // self.replicate_size)
            self.weights_mesh = init_device_mesh(self.root_device.type, sizes, mesh_dim_names=("replicate", "shard"))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a folder together. Collective."""
        io = self._io()
        io.writers = together()
        io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read, of what is sharded here or was when it was written, this process's own rows. Collective."""
        io = self._io()
        io.readers = together()
        tree = io.open_checkpoint(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        weights = self.lightning_module.state_dict()
        tree["state_dict"] = _read_as(tree.get("state_dict", {}), weights)
        for optimizer, saved in zip(self.optimizers, tree.get("optimizer_states", []), strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            like = dict(zip(numbers, parameters, strict=False))  # torch refuses another number of them
            saved["state"] = {
                number: _read_as(state, dict.fromkeys(state, like.get(number)))
                for number, state in saved["state"].items()
            }
        loaded: dict[str, Any] = read_tensors(tree, self._read)
        return loaded

    def _read(self, stored: Stored) -> Tensor:
        """A tensor that no other here tells the layout of: sharded if it was when it was written."""
        if not stored.bounds:
            return stored.read()
        assert self.weights_mesh is not None
        placements = (*[Replicate()] * (self.weights_mesh.ndim - 1), Shard(0))
        return _rows_as(stored, self.weights_mesh, placements, torch.empty(stored.shape, device="meta"), CPU)

    def _io(self) -> DurableCheckpointIO:
        """What writes and reads.

        Raises:
            ConfigError: it is not of this library.
        """
        if type(self.checkpoint_io) is TorchCheckpointIO:  # Lightning's default, a pickle
            self.checkpoint_io = DurableCheckpointIO()
        io = self.checkpoint_io
        if not isinstance(io, DurableCheckpointIO):
            raise ConfigError(
                f"{type(self).__name__} saves with DurableCheckpointIO, and the Trainer was given {type(io).__name__}; "
                "take it out of plugins"
            )
        return io


def _read_as(stored: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Of each tensor that is sharded in ``like``, this process's own rows; others are left as they are."""
    return {
        name: _rows_as(node, other.device_mesh, other.placements, other, other.device)
        if isinstance(node, Stored) and isinstance(other := like.get(name), DTensor) and node.shape == other.shape
        else node
        for name, node in stored.items()
    }


def _rows_as(
    stored: Stored, mesh: DeviceMesh, placements: Sequence[Placement], whole: Tensor, device: torch.device
) -> DTensor:
    """A stored tensor, sharded over ``mesh`` by its rows; ``whole`` has its shape and stride."""
    part = part_of(mesh, placements)
    assert part is not None
    rows = stored.read(*own_rows(whole.shape[0], part.number, part.size)).to(device)
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def weights_mesh(strategy: Any) -> DeviceMesh | None:
    """The processes among which a strategy shards weights; None where each holds all of them."""
    if isinstance(strategy, DurableModelParallelStrategy):
        return strategy.weights_mesh
    return strategy.device_mesh["data_parallel"] if isinstance(strategy, ModelParallelStrategy) else None
