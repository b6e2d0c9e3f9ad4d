"""``rlhf-lightning data check``: what a stage would make of files."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.console.streams import say
from rlhf_lightning.data.check import check
from rlhf_lightning.errors import ConfigError


def run(words: Sequence[str]) -> None:
    """Show the report.

    Raises:
        ConfigError: another word than ``check``.
        DataError: see `rlhf_lightning.data.check.check`.
    """
    if words[:1] in (["-h"], ["--help"]):
        words = ["check", "--help"]
    if words[:1] != ["check"]:
        raise ConfigError(f"data {' '.join(words)}: write `rlhf-lightning data check FILE ... --stage reward`")
    say(check(words[1:]), preview=True)
