"""Transformers models as this library uses them: loading, scalar heads, frozen copies, sharding, export."""

from rlhf_lightning.models.frozen import FrozenModels, frozen_copy
from rlhf_lightning.models.heads import ScalarModel, ValueHead
from rlhf_lightning.models.loading import Pretrained, load_tokenizer

__all__ = ["FrozenModels", "Pretrained", "ScalarModel", "ValueHead", "frozen_copy", "load_tokenizer"]
