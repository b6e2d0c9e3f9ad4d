"""The group ``logger``: one logger, or several under names of the user's choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.errors import ConfigError


def logger_nodes(group: Any) -> dict[str, Mapping[str, Any]]:
    """The nodes to be built, each by its key; those that are null are left out.

    Raises:
        ConfigError: something there is no logger, or one stands inside of another.

    >>> sorted(logger_nodes({"tb": {"_target_": "a.B"}, "csv": {"_target_": "a.C"}, "old": None}))
    ['logger.csv', 'logger.tb']
    >>> list(logger_nodes({"_target_": "a.B", "save_dir": "runs"}))
    ['logger']
    """
    if not group:
        return {}
    if not isinstance(group, Mapping):
        raise ConfigError(f"logger={group}: must be a logger or several under names; see `logger=many`")
    if "_target_" in group:
        inner = [key for key, value in group.items() if isinstance(value, Mapping) and "_target_" in value]
        if inner:
            raise ConfigError(
                f"logger.{inner[0]}: this is a logger inside of another one; to have several, each needs a name: begin "
                "with logger=many or logger=none"
            )
        return {"logger": group}
    for name, node in group.items():
        if node is not None and not (isinstance(node, Mapping) and "_target_" in node):
            raise ConfigError(f"logger.{name}: is no logger, since it has no _target_")
    return {f"logger.{name}": node for name, node in group.items() if node is not None}
