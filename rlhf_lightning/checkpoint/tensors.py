"""Tensors in safetensors files: each process writes one, of whole tensors and of the rows of others that it holds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard

from rlhf_lightning.errors import CheckpointError

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def file_of(rank: int) -> str:
    """Name of the file that a process writes; one on its own is the first."""
    return f"tensors-{rank}.safetensors" if rank else "tensors.safetensors"


@dataclass(frozen=True)
class Rows:
    """What a process holds of a tensor that it shares with others.

    Args:
        local: [n, ...], its rows; none of them on processes for which none are left.
        start: index of the first of them in the whole tensor.
        shape: of the whole tensor.
    """

    local: Tensor
    start: int
    shape: tuple[int, ...]


def own_rows(count: int, index: int, size: int) -> tuple[int, int]:
    """First and last (exclusive) of ``count`` rows that FSDP2 gives to process ``index`` of ``size``.

    >>> [own_rows(5, index, 4) for index in range(4)]
    [(0, 2), (2, 4), (4, 5), (5, 5)]
    """
    chunk = -(-count // size)
    return min(index * chunk, count), min((index + 1) * chunk, count)


class Part(NamedTuple):
    """Which part of a sharded tensor a process holds."""

    number: int  # 0 to ``size`` - 1
    size: int  # processes that share a copy of it
    first: bool  # whether it holds a part of the first copy, where there are several


def part_of(mesh: DeviceMesh, placements: Sequence[Placement]) -> Part | None:
    """Of this process; None for a tensor that is shared in another way than by its rows, copied or not."""
    shards = [dim for dim, place in enumerate(placements) if place == Shard(0)]
    others = [dim for dim, place in enumerate(placements) if place != Shard(0)]
    if len(shards) != 1 or not all(placements[dim].is_replicate() for dim in others):
        return None
    (across,) = shards
    return Part(mesh.get_local_rank(across), mesh.size(across), not any(mesh.get_local_rank(dim) for dim in others))


def rows_of(tensor: DTensor) -> Rows:
    """The rows of a sharded tensor that this process is to write, a view; none of them for those of a second copy.

    Raises:
        CheckpointError: it is shared in another way than by rows, in equal parts, among all processes of its mesh.
    """
    local, count = tensor.to_local(), tensor.shape[0] if tensor.dim() else 0
    part = part_of(tensor.device_mesh, tensor.placements)
    start, stop = own_rows(count, part.number, part.size) if part else (0, 0)
    if part is None or len(local) != stop - start:
        raise CheckpointError(
            f"a tensor of {list(tensor.shape)} is shared among processes as {tensor.placements}; a checkpoint holds "
            "whole tensors, and those that are sharded by their first dimension among all processes"
        )
    return Rows(local, start, tuple(tensor.shape)) if part.first else Rows(local[:0], count, tuple(tensor.shape))


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write and flush a file, one tensor after the other; returns its ``sha256`` and ``bytes``.

    The safetensors format: length of the header, header, and the bytes of all tensors in its order.
    """
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head)
    with file.open("wb") as stream:
        stream.write(head)
        for tensor in tensors.values():
            flat: Any = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy() if tensor.numel() else b""
            digest.update(flat)
            stream.write(flat)
        stream.flush()
        os.fsync(stream.fileno())
    return {"sha256": digest.hexdigest(), "bytes": len(head) + start}


@dataclass(frozen=True)
class Stored:
    """A tensor in the files of a checkpoint, which is read when it is asked for.

    Args:
        folder: of the checkpoint.
        name: in the files.
        bounds: the file of process k holds the rows from ``bounds[k]`` to ``bounds[k + 1]``; empty for a tensor that
            lies whole in the first file.
        whole: shape of the whole tensor, of one with bounds.
    """

    folder: Path
    name: str
    bounds: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        if self.bounds:
            return self.whole
        with safe_open(self.folder / file_of(0), framework="pt") as stored:
            return tuple(stored.get_slice(self.name).get_shape())

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The whole tensor, or its rows from ``start`` to ``stop``, on the CPU."""
        if not self.bounds:
            return self._slice(0, start, stop)
        stop = self.whole[0] if stop is None else stop
        pieces = [
            self._slice(rank, max(start, first) - first, min(stop, last) - first)
            for rank, (first, last) in enumerate(zip(self.bounds, self.bounds[1:], strict=False))
            if max(start, first) < min(stop, last)
        ]
        if not pieces:  # no row is asked for
            return self._slice(next(rank for rank, last in enumerate(self.bounds[1:]) if last), 0, 0)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _slice(self, rank: int, start: int, stop: int | None) -> Tensor:
        with safe_open(self.folder / file_of(rank), framework="pt") as stored:
            if not start and stop is None:
                return stored.get_tensor(self.name)
            return stored.get_slice(self.name)[start:stop]
