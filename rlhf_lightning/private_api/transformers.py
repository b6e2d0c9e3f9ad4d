"""What transformers does not promise to keep."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter


def attention_of(config: Any) -> str:
    """The attention kernel of a model with this config, for example ``sdpa``.

    Relies on ``_attn_implementation``; ``attn_implementation`` can be given but not asked for.
    """
    return config._attn_implementation


def generation_defaults() -> dict[str, Any]:
    """What `generate` takes where neither the call nor the model says anything.

    Relies on ``_get_default_generation_params``; ``GenerationConfig()`` says None.
    """
    return GenerationConfig._get_default_generation_params()


def from_config(model_class: Any, config: Any, dtype: torch.dtype, attention: str | None = None) -> Any:
    """A model with new weights, and an attention kernel, by default the one that its config already has.

    Relies on ``_from_config``, which is what the ``from_config`` of the auto classes calls.
    """
    make = getattr(model_class, "from_config", None) or model_class._from_config
    return make(config, dtype=dtype, attn_implementation=attention or attention_of(config))


def changes_weights(model: PreTrainedModel) -> bool:
    """Whether loading a model computes some of its weights from those in the files (fused, transposed, permuted).

    Relies on ``get_model_conversion_mapping``, which `from_pretrained` asks.
    """
    return any(isinstance(change, WeightConverter) for change in get_model_conversion_mapping(model))
