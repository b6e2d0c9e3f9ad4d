"""FSDP2 with checkpoint folders: Lightning's strategy replaces no folder and reads with `torch.load`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed import default_pg_timeout
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from rlhf_lightning.private_api.lightning import named_optimizer_state, saves_shards, share_among_all
from rlhf_lightning.rules.placement import check_replicas
from rlhf_lightning.rules.ranges import require


class DurableModelParallelStrategy(ModelParallelStrategy):
    """`ModelParallelStrategy` whose whole-model checkpoints are verified folders.

    Args:
        data_parallel_size: processes that learn from data of their own; None: all of all nodes.
        tensor_parallel_size: parameters are sharded, computations are not.
        save_distributed_checkpoint: one verified folder, which any number of processes can read, unless it is true.
        process_group_backend: Lightning chooses.
        timeout: in which a process must answer the others, before all of them end.
        replicate_size: copies of the weights, each in shards on consecutive processes: 1 shards among all of them, the
            number of nodes inside of each. Gradients are summed inside of a copy, then over the copies (hybrid
            sharding, Zhao et al. 2023, "PyTorch FSDP", section 3.2.2).

    Raises:
        ConfigError: the copies do not divide the processes.
    """

    _structure_only = False

    def __init__(
        self,
        data_parallel_size: int | None = None,
        tensor_parallel_size: int = 1,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        replicate_size: int = 1,
    ) -> None:
        require("replicate_size", replicate_size, at_least=1)
        among_all: Any = data_parallel_size  # None: until `setup_environment` knows their number
        super().__init__(among_all, tensor_parallel_size, save_distributed_checkpoint, process_group_backend, timeout)
        self.replicate_size = replicate_size
        self.weights_mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        """Meet the other processes."""
        share_among_all(self)
        super().setup_environment()
        self.weights_mesh = self.device_mesh["data_parallel"]
        if self.replicate_size > 1:
            check_replicas(self.replicate_size, self.world_size)
            sizes = (self.replicate_size, self.world_size // self.replicate_size)
            self.weights_mesh = init_device_mesh(self.root_device.type, sizes, mesh_dim_names=("replicate", "shard"))

    @contextmanager
    def structure_only(self) -> Iterator[None]:
        """Inside, a checkpoint has no weights and no state of optimizers: nothing is gathered to look at the rest."""
        self._structure_only = True
        try:
            yield
        finally:
            self._structure_only = False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """On the first rank, and gathered; collective."""
        return {} if self._structure_only else super().lightning_module_state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """On the first rank, and gathered; collective."""
        if not self._structure_only:
            return super().optimizer_state(optimizer)
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        return {"state": {}, "param_groups": groups}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """The first rank writes the folder, also where an older one is; Lightning refuses to replace a folder."""
        if saves_shards(self):
            super().save_checkpoint(checkpoint, filepath, storage_options)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, Path(filepath))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads the folder and keeps its shard of weights and optimizer state."""
        if saves_shards(self):
            return super().load_checkpoint(checkpoint_path, weights_only=True)
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = self.checkpoint_io.load_checkpoint(path)
        assert self.lightning_module is not None and self.model is not None
        options = StateDictOptions(full_state_dict=True, strict=self.lightning_module.strict_loading)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=True):
            named = named_optimizer_state(state, self.model)  # one process numbers its parameters
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint


def weights_mesh(strategy: Any) -> DeviceMesh | None:
    """The processes among which a strategy shards weights; None where each holds all of them."""
    if isinstance(strategy, DurableModelParallelStrategy):
        return strategy.weights_mesh
    return strategy.device_mesh["data_parallel"] if isinstance(strategy, ModelParallelStrategy) else None
