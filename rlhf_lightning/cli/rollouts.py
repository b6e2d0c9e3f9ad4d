"""``rlhf-lightning rollouts``: what was recorded while a policy learned, as a table or as rows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.arguments import check_new, parser, rows_to
from rlhf_lightning.cli.tables import show_table
from rlhf_lightning.console.streams import quiet, say

SORTED_BY = ("rollout", "score", "length")
SHOWN = ("rollout", "version", "score", "length", "end", "prompt", "completion")
LONGEST = 60  # characters of a text in the table


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    words = parser(
        "rollouts",
        "Show recorded rollouts (callbacks.record.folder): the answers a policy learned from, with their scores.",
        "rlhf-lightning rollouts runs/mine/rollouts --sort score -n 5 --out lowest.jsonl",
    )
    words.add_argument("folder", metavar="FOLDER", help="what callbacks.record.folder was")
    words.add_argument("--rollout", type=int, metavar="N", help="of one rollout only; the first is 1")
    words.add_argument("--below", type=float, metavar="SCORE", help="with a lower score only")
    words.add_argument("--above", type=float, metavar="SCORE", help="with a higher score only")
    words.add_argument("--contains", metavar="TEXT", help="with this in the answer only")
    words.add_argument("--truncated", action="store_true", help="that were cut at the longest length only")
    words.add_argument("--sort", choices=SORTED_BY, default="rollout", help="lowest first (rollout)")
    words.add_argument("-n", type=int, default=20, metavar="N", help="how many, from the end if below 0; 0 is all (20)")
    words.add_argument("--out", metavar="FILE", help="write rows to a new file instead of showing a table")
    return words


def run(words: Sequence[str]) -> None:
    """Show or write the rollouts that are wanted.

    Raises:
        DataError: nothing was recorded there.
        CheckpointError: a file is damaged.
        ConfigError: the new file is there already.
    """
    given = arguments().parse_args(words)
    check_new("--out", given.out)
    quiet()
    from rlhf_lightning.rollout.recorded import table

    every = list(table(Path(given.folder)))
    found = sorted((row for row in every if _wanted(row, given)), key=lambda row: _place(row, given.sort))
    shown = found[: given.n or None] if given.n >= 0 else found[given.n :]
    if given.out:
        with rows_to(given.out) as write:
            for row in shown:
                write(row)
    elif shown:
        show_table(list(SHOWN), [_cells(row) for row in shown])
    say(f"{len(shown)} of {len(every)} answers")


def _wanted(row: dict[str, Any], given: argparse.Namespace) -> bool:
    score = row["score"]
    known = score is not None and score == score
    return not (
        (given.rollout is not None and row["rollout"] != given.rollout)
        or (given.below is not None and not (known and score < given.below))
        or (given.above is not None and not (known and score > given.above))
        or (given.contains is not None and given.contains not in row["completion"])
        or (given.truncated and row["finished"])
    )


def _place(row: dict[str, Any], name: str) -> Any:
    value = row[name]
    return (value is None or value != value, value if value == value else 0)  # what nobody judged comes last


def _cells(row: dict[str, Any]) -> list[str]:
    prompt = row["prompt"] if isinstance(row["prompt"], str) else str(row["prompt"][-1].get("content", ""))
    score = "-" if row["score"] is None else f"{row['score']:.3f}"
    end = "" if row["finished"] else "cut"
    texts = [_short(text) for text in (prompt[-LONGEST:], row["completion"])]
    return [str(row["rollout"]), str(row["version"]), score, str(row["length"]), end, *texts]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
