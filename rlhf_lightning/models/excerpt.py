"""A small float32 model cut out of another, to try how its architecture computes without the rounding of its dtype."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.configs import cut_to_layers
from rlhf_lightning.models.trunk import decoder, layers, probe_ids


def excerpt(model: PreTrainedModel) -> PreTrainedModel:
    """A float32 copy in eval mode with one decoder layer of each kind, at least two, and the few tokens of `probe_ids`.

    Of a large model it holds two layers and no vocabulary. A stack whose layers are not found is copied whole.
    """
    used = int(probe_ids(model).max()) + 1
    tables = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    # what `deepcopy` finds in its memo it takes instead of a copy
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach()[:used].clone()) for table in tables for weight in table.parameters()
    }
    kept: list[int] | None = None
    try:
        stack = layers(model)
        kept = _one_of_each_kind(stack)
        memo[id(stack)] = nn.ModuleList(copy.deepcopy(stack[number], memo) for number in kept)
    except ConfigError:
        pass
    small = copy.deepcopy(model, memo).eval().float()
    embedding: Any = small.get_input_embeddings()
    embedding.padding_idx = None  # it may be a token that was left out
    if kept is not None:
        config = decoder(small).config
        vars(config).update(vars(cut_to_layers(config, kept)))
    return small


def _one_of_each_kind(stack: nn.ModuleList) -> list[int]:
    """Numbers of the first layer of each kind and of the second layer, ascending."""
    first: dict[tuple[Any, ...], int] = {}
    for number, layer in enumerate(stack):
        first.setdefault(tuple((name, type(part)) for name, part in layer.named_modules()), number)
    return sorted({*first.values(), *range(min(2, len(stack)))})
