"""``rlhf-lightning data check``: what a stage would make of files, without a model and without torch."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.data.readers.files import iter_rows
from rlhf_lightning.data.readers.problems import Problems
from rlhf_lightning.data.rows.validate import count_repeated, row_type, validate_rows
from rlhf_lightning.errors import DataError
from rlhf_lightning.rules.stages import STAGES

SHOWN = 20  # problems that are spelled out


def check(words: Sequence[str]) -> str:
    """The report on the files that a command line names; wrong words end the process with code 2.

    Raises:
        DataError: more bad rows than ``--max-bad-rows``, or a file that cannot be read; the message is the report.
    """
    given = parser().parse_args(words)
    kind, problems = STAGES[given.stage].rows, Problems(SHOWN)
    train, validation = (
        validate_rows((row for file in files for row in iter_rows(file, problems)), kind, problems)
        for files in (given.files, given.validation)
    )
    good = len(train) + len(validation)
    duplicates, leaks = count_repeated([row.row for row in train], [row.row for row in validation], kind)
    types = Counter(row_type(row.row, kind) for row in [*train, *validation])
    counts = [f"{good} rows for {given.stage}" + "".join(f", {count} {name}" for name, count in types.most_common())]
    counts += [f"{duplicates} of them repeat an earlier one"] if duplicates else []
    counts += (
        [f"{leaks} validation rows {'are' if kind == 'demonstrations' else 'have prompts that are'} also in training"]
        if leaks
        else []
    )
    try:
        problems.raise_above(given.max_bad_rows, good)
    except DataError as error:
        raise DataError("\n".join([str(error), *counts])) from None
    return "\n".join([*counts, *([f"{problems.count} rows are left out:", str(problems)] if problems.count else [])])


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    words = argparse.ArgumentParser("rlhf-lightning data check", add_help=False, allow_abbrev=False)
    words.add_argument("files", nargs="+", type=Path, metavar="FILE")
    words.add_argument("--stage", required=True, choices=STAGES)
    words.add_argument("--validation", nargs="+", type=Path, metavar="FILE", default=[])
    words.add_argument("--max-bad-rows", type=int, default=0)
    return words
