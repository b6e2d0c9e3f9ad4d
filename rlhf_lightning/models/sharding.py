"""FSDP2: shard a model over a device mesh, gather it for generation, read its full weights for export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf_lightning.models.heads import ScalarModel, ValueHead
from rlhf_lightning.models.trunk import layers


def shard(model: nn.Module, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """Shard each decoder layer, then the whole model, in place.

    What is in no layer, as embeddings, stays gathered from forward to backward; of a frozen model it does not.

    Args:
        model: a language model, a `ScalarModel` or a `ValueHead`.
        mesh: of the ranks that share its weights.
        compute: dtype in which weights are gathered and computed with; None keeps that of the shards. The shards keep
            theirs in any case, and gradients are summed over ranks in float32: the optimizer learns in full precision.
            Scalar heads are computed in float32, see `linear_fp32`.
    """
    if isinstance(model, ValueHead):
        fully_shard(model, mesh=mesh)
        return
    policy = MixedPrecisionPolicy() if compute is None else MixedPrecisionPolicy(compute, reduce_dtype=torch.float32)
    inner: Any = model.model if isinstance(model, ScalarModel) else model
    if isinstance(model, ScalarModel):
        fully_shard(inner.score, mesh=mesh)
    for layer in layers(inner):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    frozen = not any(weight.requires_grad for weight in model.parameters())
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True if frozen else None)


@contextmanager
def kept_shared(models: Sequence[nn.Module]) -> Iterator[None]:
    """Frozen weights that several models share when the block begins share their shards when it ends.

    `shard` gives each model shards of its own, and inside of the block it is called on all of them. Rows that pad a
    shard to the size of the others may be copied.
    """
    places: dict[int, tuple[nn.Module, str]] = {}
    shared: list[tuple[nn.Module, dict[str, tuple[nn.Module, str]]]] = []
    for model in models:
        weights = dict(model.named_parameters(remove_duplicate=False))
        shared.append((model, {name: places[id(w)] for name, w in weights.items() if id(w) in places}))
        places = {id(w): (model, name) for name, w in weights.items()} | places
    yield
    for model, others in shared:
        kept = {at: nn.Parameter(at[0].get_parameter(at[1]).detach(), requires_grad=False) for at in others.values()}
        model.load_state_dict({name: kept[at] for name, at in others.items()}, strict=False, assign=True)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Hold the full weights on every rank inside the block, so that decoding needs no collective per token."""
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """All weights, gathered to the CPU; collective under FSDP2 (rank 0 gets them, others an empty dict)."""
    if not any(isinstance(part, FSDPModule) for part in model.modules()):
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}
    gathered: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return gathered


def sharded_as(state: Mapping[str, Tensor], other: Mapping[str, Any]) -> dict[str, Tensor]:
    """What this rank keeps of a state dict of whole tensors, where another one with these names is sharded."""
    return {
        name: distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
        if isinstance(like := other[name], DTensor) and not isinstance(value, DTensor)
        else value
        for name, value in state.items()
    }


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the norm of all gradients together, in place, and return it as it was before, float []; 0 without gradients.

    ``max_norm`` 0 or below only measures.
    """
    norm = nn.utils.clip_grad_norm_(list(parameters), max_norm if max_norm > 0 else float("inf"))
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
