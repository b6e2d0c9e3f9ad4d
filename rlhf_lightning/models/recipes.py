"""What a module is given as its model: a recipe that is loaded when it is built, or the model itself."""

from __future__ import annotations

from pathlib import PurePath

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import Pretrained, frozen_copy
from rlhf_lightning.models.adapters import lora_of
from rlhf_lightning.rules.placement import check_adapter_dropout


def _require(source: object) -> None:
    if isinstance(source, (str, PurePath)):
        raise ConfigError(f"the model {str(source)!r} is a folder: give Pretrained({str(source)!r})")


def load_policy(source: Pretrained | PreTrainedModel) -> PreTrainedModel:
    """A causal language model from a recipe, or the model itself."""
    _require(source)
    return source.causal_lm() if isinstance(source, Pretrained) else source


def load_trained(source: Pretrained | PreTrainedModel, dropout: bool = True) -> PreTrainedModel:
    """`load_policy` for training: with the adapters of the recipe, if it has any.

    Args:
        source: see `load_policy`.
        dropout: False refuses adapters with dropout.

    Raises:
        ConfigError: the adapters have dropout.
    """
    _require(source)
    policy = source.adapted(source.causal_lm()) if isinstance(source, Pretrained) else source
    lora = lora_of(policy)
    if lora is not None and not dropout:
        check_adapter_dropout(lora.lora_dropout)
    return policy


def load_reference(source: Pretrained | PreTrainedModel | None, policy: PreTrainedModel) -> PreTrainedModel:
    """The model to stay near, from a recipe or as it is; None takes a frozen copy of the policy as it starts.

    Raises:
        ConfigError: its vocabulary has another size than that of the policy, whose tokens it could not score.
    """
    if source is None or source is policy:
        return frozen_copy(policy)
    reference = load_policy(source)
    sizes = [model.get_input_embeddings().num_embeddings for model in (reference, policy)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"reference: its vocabulary has {sizes[0]} tokens, the policy's {sizes[1]}; name a model that shares the "
            "policy's tokenizer, such as the one it was trained from"
        )
    return reference


def depth_of(source: Pretrained | nn.Module) -> int:
    """Number of frozen lower layers of a recipe; 0 for a plain model."""
    _require(source)
    return source.freeze_below if isinstance(source, Pretrained) else 0


def offloads(source: Pretrained | nn.Module | None) -> bool:
    """Whether a recipe keeps frozen models in the memory of the host while nobody asks them; a plain model does not."""
    return isinstance(source, Pretrained) and source.offload


def tokenizer_of(source: Pretrained | PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe.

    Raises:
        ConfigError: ``source`` is a model.
    """
    if not isinstance(source, Pretrained):
        raise ConfigError("policy=<model> also needs tokenizer=, since a plain model does not know its own")
    return source.tokenizer()
