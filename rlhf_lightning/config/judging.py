"""A config is judged once, whether the command makes it, `compose`, or the user by hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.config.chain import check_complete
from rlhf_lightning.config.checks import check_config
from rlhf_lightning.config.loggers import check_installed


class Judged(dict[str, Any]):
    """A config that `check_config` has judged as it stands. One that was changed since is judged again, see `judged`.

    Args:
        config: plain dicts and lists.
        to_run: whether `check_complete` has judged it, too.
        overrides: the command line it was composed with, as far as it is known.
    """

    def __init__(self, config: Mapping[str, Any], to_run: bool = False, overrides: Sequence[str] = ()) -> None:
        super().__init__(config)
        self.to_run, self.overrides, self._before = to_run, list(overrides), copy.deepcopy(dict(config))

    def stands(self) -> bool:
        """Whether it is as it was."""
        return self == self._before


def judged(config: Mapping[str, Any]) -> Judged:
    """A config that may run. What was judged before and has not changed is not judged again.

    Raises:
        ConfigError: see `check_config`, `check_complete` and `check_installed`.
    """
    known = config if isinstance(config, Judged) and config.stands() else None
    if known is None:
        check_config(config)
    if known is None or not known.to_run:
        check_complete(config)
        check_installed(config.get("logger"))
        known = Judged(config, to_run=True, overrides=getattr(config, "overrides", ()))
    return known
