"""The decoder stack of a Hugging Face model, whole or in two parts: frozen lower layers and trained upper ones.

When the lowest layers are frozen their output is the same for policy, reference and critic, and for every pass over a
rollout: it is computed once. The two parts are shallow views that share the parameters of the model; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.sequences import position_ids
from rlhf_lightning.models.configs import cut_to_layers, narrowed
from rlhf_lightning.models.output import output_of
from rlhf_lightning.private_api.torch import view_of


def decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The stack of decoder layers below any head; of a model that also takes images or sound, that for text."""
    stack: Any = model.get_decoder()
    if stack is model:  # some call their stack otherwise than their class says
        stack = next((part for part in model.children() if isinstance(part, PreTrainedModel)), model)
        stack = stack if stack is model else decoder(stack)
    return stack


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
        f"{type(model).__name__} has no list of decoder layers called `layers` or `h`, which model.freeze_below and "
        "trainer=fsdp2 need; set model.freeze_below=0 and take another trainer"
    )


def plain_inputs(input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """What a model or its decoder is called with for token ids [B, S] under a bool mask [B, S]."""
    positions = position_ids(attention_mask)
    return {
        "input_ids": input_ids, "attention_mask": attention_mask.long(), "position_ids": positions, "use_cache": False
    }  # fmt: skip


def probe_ids(model: PreTrainedModel) -> Tensor:
    """A short row to try a model with, long [1, 14]: no token comes twice, and none is one of the first, which are
    often special."""
    size = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    return (torch.arange(14, device=model.device)[None] + min(11, size // 5)) % size


def states_of(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """Logits [B, S, V] of a language model, final hidden states [B, S, D] of a scalar one, for `plain_inputs`."""
    if model.get_output_embeddings() is not None:
        return model(**inputs).logits
    return decoder(model)(**inputs).last_hidden_state


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two computations of the same states or logits [..., D] differ by rounding only.

    The distance is taken token by token, relative to the size of the numbers about their mean. In half precision the
    median counts, since there a few tokens of a mixture of experts may take another expert.
    """
    size = (expected.float() - expected.float().mean(-1, keepdim=True)).norm(dim=-1)
    gap = (found.float() - expected.float()).norm(dim=-1) / size.clamp(min=1e-9)
    half = expected.dtype.itemsize < 4
    return bool(gap.median() < 0.05 if half else gap.max() < 1e-4)


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


def checkpoint_activations(model: PreTrainedModel, every: int = 1) -> None:
    """Keep the inputs of decoder layers only while training, and compute the rest again in the backward pass.

    Source: Chen et al. 2016, arXiv:1604.06174.

    Args:
        model: in place; the first layer and each ``every``-th behind it change.
        every: 1 for all layers.

    Raises:
        ConfigError: transformers cannot do it for this architecture, or there are fewer layers.
    """
    kind = f"{model.config.model_type} models"
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"model.activation_checkpointing: transformers cannot do it for {kind}; set it to false"
        ) from error
    model.checkpoint_every = every  # type: ignore[assignment]
    if every == 1:
        return
    stack = [part for part in decoder(model).modules() if isinstance(part, GradientCheckpointingLayer)]
    if not stack:
        raise ConfigError(
            f"model.activation_checkpointing={every}: transformers can do it for all layers of {kind} only; set it to "
            "true"
        )
    if every > len(stack):
        raise ConfigError(
            f"model.activation_checkpointing={every}: the model has {len(stack)} layers; choose 1 to {len(stack)}, or "
            "false for none"
        )
    for number, layer in enumerate(stack):
        layer.gradient_checkpointing = number % every == 0


@torch.no_grad()
def run_lower(model: PreTrainedModel, depth: int, inputs: Mapping[str, Any]) -> Tensor:
    """Hidden states [B, S, D] after the lowest ``depth`` layers, without gradient, for `plain_inputs` or the like."""
    lower = _view(model, slice(depth))
    lower.norm = nn.Identity()
    return lower(**inputs).last_hidden_state


def run_upper(model: PreTrainedModel, depth: int, hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Final hidden states [B, S, D] from those of `run_lower` for the same inputs."""
    upper = _view(model, slice(depth, None))
    return upper(**{**inputs, "input_ids": None, "inputs_embeds": hidden}).last_hidden_state


def _view(model: PreTrainedModel, part: slice) -> PreTrainedModel:
    """A shallow copy of the stack with some of its layers, which its config speaks of; parameters are shared."""
    stack = decoder(model)
    view = view_of(stack)
    view.layers = layers(model)[part]
    view.config = cut_to_layers(stack.config, range(stack.config.num_hidden_layers)[part])
    return view


@torch.no_grad()
def _check_split(model: PreTrainedModel, depth: int) -> None:
    """Refuse architectures that do more between embedding and layers, or treat layers by their number."""
    stack = decoder(model)
    name = f"model.freeze_below: {type(model).__name__}"
    refused = f"{name} cannot be run in two parts; set it to 0"
    if not (hasattr(stack, "layers") and isinstance(getattr(stack, "norm", None), nn.Module)):
        raise ConfigError(refused)
    ids = probe_ids(model).expand(2, -1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :2] = False
    was_training = model.training
    model.eval()
    try:
        with narrowed(stack.config, ids.shape[1] // 3):
            inputs = plain_inputs(ids, mask)
            whole = states_of(model, inputs)
            states = run_upper(model, depth, run_lower(model, depth, inputs), inputs)
        if model.get_output_embeddings() is not None:  # a scalar model has none
            states = output_of(model).logits(states)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ConfigError(f"{refused} ({type(error).__name__}: {str(error)[:100]})") from error
    finally:
        model.train(was_training)
    if not agree(states[mask], whole[mask]):
        raise ConfigError(f"{name} gives other results in two parts; set it to 0")
