"""What transformers does not promise to keep."""

from __future__ import annotations

from typing import Any


def attention_of(config: Any) -> str:
    """The attention kernel of a model with this config, for example ``sdpa``.

    Relies on ``_attn_implementation``; ``attn_implementation`` can be given but not asked for.
    """
    return config._attn_implementation
