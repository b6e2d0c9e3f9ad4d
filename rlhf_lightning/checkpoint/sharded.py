"""FSDP2 with checkpoint folders: Lightning's strategy replaces no folder and reads with `torch.load`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer

from rlhf_lightning.private_api.lightning import named_optimizer_state, saves_shards, share_among_all


class DurableModelParallelStrategy(ModelParallelStrategy):
    """`ModelParallelStrategy` whose whole-model checkpoints are verified folders.

    With ``data_parallel_size=None`` all processes of all nodes share the weights.
    """

    _structure_only = False

    def setup_environment(self) -> None:
        """Meet the other processes."""
        share_among_all(self)
        super().setup_environment()

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
