"""``rlhf-lightning prepare``: fetch what a task needs, once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rlhf_lightning.cli.arguments import parser
from rlhf_lightning.console.streams import quiet, say
from rlhf_lightning.errors import ConfigError


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    take = parser("prepare", "Fetch a small real model, SmolLM2-135M.", "rlhf-lightning prepare smollm2 models/smollm2")
    take.add_argument("what", metavar="smollm2")
    take.add_argument("folder", metavar="FOLDER", nargs="?", default="models/smollm2")
    return take


def run(words: Sequence[str]) -> None:
    """Fetch a small real model.

    Raises:
        ConfigError: there is nothing of that name.
    """
    given = arguments().parse_args(words)
    if given.what != "smollm2":
        raise ConfigError(f"prepare {' '.join(words)}: write `rlhf-lightning prepare smollm2 [FOLDER]`")
    quiet()
    from rlhf_lightning.tasks.smollm2 import prepare_smollm2

    say(f"ready: model.path={prepare_smollm2(given.folder)}")
