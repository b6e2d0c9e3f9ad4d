"""Transformers models as this library uses them: loading, scalar heads, frozen copies, sharding, export."""

from rlhf_lightning.models.frozen import FrozenModels, frozen_copy
from rlhf_lightning.models.heads import ScalarModel, ValueHead
from rlhf_lightning.models.loading import Pretrained, eos_token_ids, load_tokenizer

__all__ = ["FrozenModels", "Pretrained", "ScalarModel", "ValueHead", "eos_token_ids", "frozen_copy", "load_tokenizer"]
