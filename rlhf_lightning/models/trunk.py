"""The decoder stack of a Hugging Face model, whole or in two parts: frozen lower layers and trained upper ones.

When the lowest layers are frozen their output is the same for policy, reference and critic, and for every pass over a
rollout: it is computed once. The two parts are shallow views that share the parameters of the model; nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.sequences import position_ids
from rlhf_lightning.models.output import output_of
from rlhf_lightning.private_api.torch import view_of


def decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The stack of decoder layers below any head."""
    return model.base_model  # type: ignore[return-value]


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers in order.

    Raises:
        ConfigError: the architecture keeps them under another name than `layers` or `h`.
    """
    stack = decoder(model)
    for name in ("layers", "h"):
        found = getattr(stack, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise ConfigError(
        f"{type(model).__name__}: decoder layers not found; decoder-only models with `layers` or `h` are supported"
    )


def plain_inputs(input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """What a model or its decoder is called with for token ids [B, S] under a bool mask [B, S]."""
    positions = position_ids(attention_mask)
    return {
        "input_ids": input_ids, "attention_mask": attention_mask.long(), "position_ids": positions, "use_cache": False
    }  # fmt: skip


def hidden_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Final hidden states [B, S, D] of token ids [B, S] under a bool mask [B, S]."""
    return decoder(model)(**plain_inputs(input_ids, attention_mask)).last_hidden_state


def freeze_layers(model: PreTrainedModel, depth: int) -> None:
    """Stop training the embeddings and the lowest ``depth`` layers (a tied output embedding is frozen with them).

    Raises:
        ConfigError: ``depth`` is not below the number of layers, or the stack cannot be run in two parts.
    """
    count = len(layers(model))
    if not 0 < depth < count:
        raise ConfigError(
            f"model.freeze_below={depth}: the model has {count} layers; choose 1 to {count - 1}, or 0 for none"
        )
    _check_split(model, depth)
    model.get_input_embeddings().requires_grad_(False)
    for layer in layers(model)[:depth]:
        layer.requires_grad_(False)


@torch.no_grad()
def run_lower(model: PreTrainedModel, depth: int, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Hidden states [B, S, D] after the lowest ``depth`` layers, without gradient."""
    lower = _view(decoder(model), layers(model)[:depth])
    lower.norm = nn.Identity()
    return lower(**plain_inputs(input_ids, attention_mask)).last_hidden_state


def run_upper(model: PreTrainedModel, depth: int, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Final hidden states [B, S, D] from those of `run_lower`."""
    upper = _view(decoder(model), layers(model)[depth:])
    return upper(
        inputs_embeds=hidden,
        attention_mask=attention_mask.long(),
        position_ids=position_ids(attention_mask),
        use_cache=False,
    ).last_hidden_state


def _view(stack: PreTrainedModel, part: nn.ModuleList) -> PreTrainedModel:
    """A shallow copy of the stack with other layers; parameters are shared."""
    view = view_of(stack)
    view.layers = part
    return view


@torch.no_grad()
def _check_split(model: PreTrainedModel, depth: int) -> None:
    """Refuse architectures that do more between embedding and layers, or treat layers by their number."""
    stack = decoder(model)
    if not (hasattr(stack, "layers") and isinstance(getattr(stack, "norm", None), nn.Module)):
        raise ConfigError(f"model.freeze_below: {type(model).__name__} cannot be run in two parts; set it to 0")
    ids = torch.arange(8, device=model.device).view(2, 4)
    mask = torch.ones_like(ids, dtype=torch.bool)
    was_training = model.training
    model.eval()
    whole = hidden_states(model, ids, mask)
    parts = run_upper(model, depth, run_lower(model, depth, ids, mask), mask)
    same = True
    if model.get_output_embeddings() is not None:  # a scalar model has none
        logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        same = torch.allclose(logits, output_of(model).logits(parts), atol=1e-3, rtol=1e-3)
    model.train(was_training)
    if not (same and torch.allclose(whole, parts, atol=1e-4, rtol=1e-3)):
        raise ConfigError(f"model.freeze_below: {type(model).__name__} gives other results in two parts; set it to 0")
