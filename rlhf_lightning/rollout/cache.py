"""The keys and values of the decode loop: tokens are written into spare room, prompts are prefilled in packs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE = 64  # columns of room that are made at once


class RoomyLayer(DynamicLayer):
    """A `DynamicLayer` that writes a new token into spare room; the original copies all keys and values each time."""

    _stores: tuple[Tensor, Tensor]  # keys and values with spare columns; `keys` and `values` are views of them

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Hold these keys and values [B, H, S, D], copied, with room for more columns."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._stores = with_room(keys), with_room(values)
        self._view(keys.shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the columns of new tokens; returns all keys and values."""
        start = self.get_seq_length()
        if start == 0:
            self.hold(key_states, value_states)
            return self.keys, self.values
        end = start + key_states.shape[-2]
        if end > self._stores[0].shape[-2]:
            self._stores = with_room(self.keys, end - start), with_room(self.values, end - start)
        for store, new in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, start:end] = new
        self._view(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices`` (long [n])."""
        self.hold(self.keys[indices], self.values[indices])

    def _view(self, length: int) -> None:
        self.keys, self.values = (store[:, :, :length] for store in self._stores)


def with_room(states: Tensor, columns: int = 0) -> Tensor:
    """A copy of ``states`` [B, H, S, D] with `SPARE` and ``columns`` uninitialised columns more."""
    length = states.shape[-2]
    store = states.new_empty(*states.shape[:-2], length + columns + SPARE, states.shape[-1])
    store[:, :, :length] = states
    return store


def empty_cache(config: PretrainedConfig, roomy: bool = True) -> DynamicCache:
    """The cache of a model.

    `RoomyLayer` takes the place of plain attention layers, where the model has no others: what sliding windows,
    recurrent states or shared keys need is left to transformers.
    """
    cache = DynamicCache(config=config)
    if roomy and is_plain(cache):
        cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer keeps all keys and values of all tokens and nothing else."""
    return bool(cache.layers) and all(type(layer) in (DynamicLayer, RoomyLayer) for layer in cache.layers)


class Pack(NamedTuple):
    """Prompts that were prefilled together."""

    cache: DynamicCache  # keys and values [n, H, w, D]
    start: int  # index of the first of the n prompts
    width: int  # columns, w


def joined(packs: Sequence[Pack], prompt: Tensor, config: PretrainedConfig) -> DynamicCache:
    """One cache for all rows, padded on the left with zeros to the widest pack.

    Args:
        packs: prefilled prompts.
        prompt: index of the prompt of each row, long [B].
        config: of the model.
    """
    cache, width = empty_cache(config), max(pack.width for pack in packs)
    for number, layer in enumerate(cache.layers):
        parts = [(pack.cache.layers[number].keys, pack.cache.layers[number].values) for pack in packs]
        states = [part[0].new_zeros(len(prompt), part[0].shape[1], width, part[0].shape[3]) for part in zip(*parts, strict=True)]
        for pack, part in zip(packs, parts, strict=True):
            rows = ((prompt >= pack.start) & (prompt < pack.start + part[0].shape[0])).nonzero().squeeze(1)
            for state, given in zip(states, part, strict=True):
                state[rows, :, width - pack.width :] = given[prompt[rows] - pack.start]
        layer.hold(*states)
    return cache
