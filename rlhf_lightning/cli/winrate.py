"""``rlhf-lightning winrate``: annotations that somebody made, as win rates."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rlhf_lightning.cli.arguments import parser
from rlhf_lightning.console.streams import quiet, say


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    words = parser(
        "winrate",
        "Win rates of annotation files in the format of AlpacaEval (a list of instruction, output_1, output_2, "
        "generator_1, generator_2, annotator and preference from 1 to 2), as they are and at equal length, each with "
        "its 95 percent interval. The policy is generator_2.",
        "rlhf-lightning winrate annotations.json",
    )
    words.add_argument("files", metavar="FILE", nargs="+", help="annotations, in any format that training reads")
    return words


def run(words: Sequence[str]) -> None:
    """Show three lines for each policy.

    Raises:
        DataError: a row that is no annotation; names file, line and key.
    """
    given = arguments().parse_args(words)
    quiet()
    from rlhf_lightning.data.readers.files import read_rows

    rows = [row for file in given.files for row in read_rows(file)]  # before torch, whose import takes seconds
    from rlhf_lightning.evaluation.annotations import annotated
    from rlhf_lightning.evaluation.conclusion import rate_text

    for one in annotated(rows):
        missing = f", {one.missing} without a preference" if one.missing else ""
        equal = "none: lengths alone tell wins from losses" if one.equal is None else rate_text(*one.equal)
        say(f"{one.policy} against {one.against}, by {one.annotator}: {one.pairs} pairs{missing}")
        say(f"  win rate         {rate_text(*one.raw)}")
        say(f"  at equal length  {equal}; its answers are {one.longer:+.0f} characters longer")
