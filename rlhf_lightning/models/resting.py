"""Frozen models that lie in the memory of the host while nobody asks them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rules.placement import FSDP2_OFFLOAD


class Resting:
    """A frozen model whose weights are on its device inside of `awake` only.

    They never change, so the host keeps its copy, pinned beside a GPU, and nothing is ever copied back.

    Args:
        model: frozen.
        beside: a model that is always on the device, and to which weights are left that both hold.

    >>> model = nn.Linear(2, 1).requires_grad_(False)
    >>> resting = Resting(model)
    >>> resting.to("meta")
    >>> with resting.awake():
    ...     print(model.weight.device)
    meta
    >>> model.weight.device
    device(type='cpu')
    """

    def __init__(self, model: nn.Module, beside: nn.Module | None = None) -> None:
        self._model, self._beside = model, beside
        self.to("cpu")

    def to(self, device: torch.device | str) -> None:
        """Where to be awake from now on.

        Raises:
            ConfigError: the weights are sharded, or will be.
        """
        self._device = torch.device(device)
        others = set() if self._beside is None else {id(weight) for *_, weight in _weights(self._beside)}
        self._own = [found for found in _weights(self._model) if id(found[2]) not in others]
        for _, _, weight in self._own:
            if hasattr(weight, "full_tensor") or weight.is_meta:
                raise ConfigError(FSDP2_OFFLOAD)
            host = weight.data.cpu()
            weight.data = host.pin_memory() if self._device.type == "cuda" else host

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Have the weights on the device."""
        there: dict[int, Tensor] = {}
        for part, name, host in self._own:
            if id(host) not in there:  # tied weights stay tied
                moved = host.detach().to(self._device, non_blocking=True)
                there[id(host)] = nn.Parameter(moved, requires_grad=False) if isinstance(host, nn.Parameter) else moved
            setattr(part, name, there[id(host)])
        try:
            yield
        finally:
            for part, name, host in self._own:
                setattr(part, name, host)


def _weights(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Parameters and buffers, with the module that holds each and its name there."""
    return [
        (part, name, weight)
        for part in model.modules()
        for name, weight in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    ]
