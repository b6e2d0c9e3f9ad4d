"""The process that trains: the command itself, or as ``python -m rlhf_lightning.cli.rank`` one of several of a run."""

from __future__ import annotations

import gc
from typing import Any

from rlhf_lightning import __version__, signals
from rlhf_lightning.rules.started import number


def train(config: dict[str, Any]) -> Any:
    """Say what is going to run, and run it; returns what `rlhf_lightning.stages.pipeline.run` does."""
    from rlhf_lightning.config.screen import opening
    from rlhf_lightning.console.streams import quiet, say

    quiet()
    if number() == 0:
        say(opening(config, __version__))  # before torch, whose import takes seconds
    gc.enable()
    from rlhf_lightning.stages.pipeline import run

    return run(config)


if __name__ == "__main__":
    with signals.watched(tells=False, at_once=True):
        from rlhf_lightning.cli.launch import serve
        from rlhf_lightning.console.streams import unbreakable

        unbreakable()
        serve(train)
