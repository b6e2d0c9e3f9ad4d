"""Columns of a row that are not learned from and change what the model is shown; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEMPLATE = ("tools", "documents", "chat_template_kwargs")
"""Columns that reach the chat template."""


def template_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row gives the chat template besides its messages.

    >>> template_arguments({"prompt": [], "tools": None, "chat_template_kwargs": {"enable_thinking": False}})
    {'enable_thinking': False}
    """
    given = {name: row[name] for name in TEMPLATE if row.get(name)}
    return given | given.pop("chat_template_kwargs", {})


RECORDED_SCORE = "recorded_score"
"""Column of a replayed row: what the scorer said, a number or one for each token; None where it was not asked."""
