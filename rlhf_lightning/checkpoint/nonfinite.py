"""Which tensor holds NaN or an infinity: asked before weights are saved, and when a step has failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def first_nonfinite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds NaN or an infinity; of a sharded one the part on this rank is looked at.

    >>> first_nonfinite([("a", torch.zeros(2)), ("b", torch.tensor([1.0, float("nan")]))])
    'b'
    """
    for name, tensor in named:
        local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if local.is_floating_point() and not _is_finite(local.detach()):
            return name
    return None


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts, lists and tuples, with its place as ``key.key.index``."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from named_tensors(value, f"{name}.{key}".lstrip("."))
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from named_tensors(value, f"{name}.{index}".lstrip("."))


def _is_finite(tensor: Tensor) -> bool:
    # NaN and infinities survive a sum, which needs no memory; only a sum that overflows asks for the exact answer
    total = tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    return bool(total.isfinite()) or bool(tensor.isfinite().all())
