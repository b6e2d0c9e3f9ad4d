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

    keys: Any
    values: Any
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

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows ``beam_idx`` (long [n]); layers of transformers of all kinds do so under this name."""
        self._stores = with_room(self.keys, rows=beam_idx), with_room(self.values, rows=beam_idx)
        self._view(self.get_seq_length())

    def _view(self, length: int) -> None:
        self.keys, self.values = (store[:, :, :length] for store in self._stores)


def with_room(states: Tensor, columns: int = 0, rows: Tensor | None = None) -> Tensor:
    """A copy of ``states`` [B, H, S, D] or of its ``rows``, with ``columns`` and `SPARE` uninitialised columns more."""
    batch, heads, length, size = states.shape
    count = batch if rows is None else len(rows)
    store = states.new_empty(count, heads, length + columns + SPARE, size)
    if rows is None:
        store[:, :, :length] = states
    else:
        torch.index_select(states, 0, rows, out=store[:, :, :length])
    return store


def empty_cache(config: PretrainedConfig, roomy: bool = True) -> DynamicCache:
    """The cache of a model.

    `RoomyLayer` takes the place of plain attention layers, where the model has no others: what sliding windows,
    recurrent states or shared keys need is left to transformers.
    """
    if not isinstance(config, PretrainedConfig):  # a policy that is no transformers model keeps nothing there
        return DynamicCache()
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
    cache = empty_cache(config)
    for number, layer in enumerate(cache.layers):
        plain: list[Any] = [pack.cache.layers[number] for pack in packs]
        keys = _rows(packs, [part.keys for part in plain], prompt)
        values = _rows(packs, [part.values for part in plain], prompt)
        layer.hold(keys, values)  # type: ignore[union-attr]
    return cache


def _rows(packs: Sequence[Pack], states: Sequence[Tensor], prompt: Tensor) -> Tensor:
    """What each row sees of the ``states`` [n, H, w, D] of the packs: [B, H, widest w, D]."""
    width = max(pack.width for pack in packs)
    out = states[0].new_zeros(len(prompt), states[0].shape[1], width, states[0].shape[3])
    for pack, state in zip(packs, states, strict=True):
        rows = ((prompt >= pack.start) & (prompt < pack.start + len(state))).nonzero().squeeze(1)
        out[rows, :, width - pack.width :] = state[prompt[rows] - pack.start]
    return out
