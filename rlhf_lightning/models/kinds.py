"""Which class of transformers a config is loaded as: a language model, or one with a scalar head.

transformers has a class with a scalar head for fewer than half of its language models. For the others one is made: the
backbone of the language model, and a linear layer ``score`` without bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_layers import GenericForSequenceClassification

LABEL = "reward"  # of the one output of a reward model, in config.json
_OLD_HEADS = {"lm_head", "embed_out", "output"}  # under these names in older files, whatever the module is called now
_made: dict[type, type[PreTrainedModel]] = {}


def causal_class(config: PretrainedConfig) -> Any:
    """Of a language model; of one that also takes images, where transformers has no other."""
    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def scalar_class(config: PretrainedConfig) -> Any:
    """Of a model with a linear head ``score``: that of transformers, or one that is made here.

    Raises:
        ValueError: transformers has no language model for this config either.
    """
    kind = type(config)
    if kind in _made:
        return _made[kind]
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or kind not in _language_models():
        with torch.device("meta"):
            known = AutoModelForSequenceClassification.from_config(config)
        if isinstance(getattr(known, "score", None), nn.Linear):  # others read the first token, or two layers deep
            return AutoModelForSequenceClassification
    _made[kind] = _make(config)
    return _made[kind]


def heads_of(config: PretrainedConfig) -> set[str]:
    """Names of what a language model has above its body: the output embedding, and whatever else makes its head."""
    with torch.device("meta"):
        whole = causal_class(config).from_config(config)
    return {name for name, _ in whole.named_children()} - {body_of(whole)[0]} | _OLD_HEADS


def body_of(model: PreTrainedModel) -> tuple[str, PreTrainedModel]:
    """Name and module of all that lies below the head."""
    return next((name, part) for name, part in model.named_children() if isinstance(part, PreTrainedModel))


def _language_models() -> set[type]:
    return {*MODEL_FOR_CAUSAL_LM_MAPPING, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}


def _make(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The backbone of the language model, under the name that it has there, and a head."""
    with torch.device("meta"):
        whole = causal_class(config).from_config(config)
    name, _ = body_of(whole)
    base: Any = [k for k in type(whole).__mro__ if issubclass(k, PreTrainedModel) and k is not PreTrainedModel][-1]
    kind, given = type(whole), type(whole.config)

    def make(self: Any, config: PretrainedConfig) -> None:
        base.__init__(self, config)
        self.num_labels = config.num_labels
        setattr(self, name, getattr(kind(config if isinstance(config, given) else config.get_text_config()), name))
        text: Any = config.get_text_config()
        self.score = nn.Linear(text.hidden_size, self.num_labels, bias=False)
        self.post_init()

    members: Any = {"__init__": make, "base_model_prefix": name, "config_class": given}
    members["__module__"] = base.__module__  # of code that is not its own transformers fills no buffers
    made = type(f"{kind.__name__.partition('For')[0]}RewardModel", (GenericForSequenceClassification, base), members)
    if names := get_checkpoint_conversion_mapping(kind.__name__):  # of weights in files, where the class has its own
        register_checkpoint_conversion_mapping(made.__name__, names, overwrite=True)
    return made
