"""``rlhf-lightning card``: write the model card of an exported folder again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.cli.arguments import parser
from rlhf_lightning.console.streams import quiet, say


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    take = parser(
        "card",
        "Write README.md, the model card, into an exported folder again: what it was made from with checksums, method "
        "and settings, the numbers of the evaluation beside it, a figure, versions. A card that you changed stays.",
        "rlhf-lightning card runs/mine/ppo --license apache-2.0",
    )
    take.add_argument("folder", metavar="FOLDER", help="that a stage has made")
    take.add_argument("--license", metavar="NAME", help="as a hub calls it; without it the card keeps its own")
    take.add_argument("--overwrite", action="store_true", help="also a card that was changed by hand")
    return take


def run(words: Sequence[str]) -> None:
    """Write the card.

    Raises:
        CheckpointError: no stage of this library made the folder, or somebody changed the card.
    """
    given = arguments().parse_args(words)
    quiet()
    from rlhf_lightning.evaluation.card import write_card

    say(str(write_card(Path(given.folder), given.license, given.overwrite)))
