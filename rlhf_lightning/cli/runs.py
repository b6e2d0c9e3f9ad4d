"""``rlhf-lightning runs``: which runs there are and how they went; ``runs compare``: several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.cli.arguments import check_new, parser
from rlhf_lightning.cli.naming import names_of
from rlhf_lightning.cli.tables import show_table
from rlhf_lightning.console.streams import quiet, say
from rlhf_lightning.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_lightning.evaluation.runs import RunSummary


def arguments() -> argparse.ArgumentParser:
    """What ``runs`` takes."""
    words = parser(
        "runs",
        "List the runs in a folder and below it: stages (those in brackets are not finished), state, main numbers. "
        "`runs compare A B` puts several side by side.",
        "rlhf-lightning runs runs/pipeline",
    )
    words.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="where to look (runs)")
    return words


def compare_arguments() -> argparse.ArgumentParser:
    """What ``runs compare`` takes."""
    words = parser(
        "runs compare",
        "One table and one figure of several runs: numbers, the settings in which they differ, and training curves.",
        "rlhf-lightning runs compare runs/one runs/two --figure two_runs.png",
    )
    words.add_argument("folders", metavar="FOLDER", nargs="+", help="of a run")
    words.add_argument("--figure", metavar="FILE", default="comparison.png", help="a new file (comparison.png)")
    return words


def run(words: Sequence[str]) -> None:
    """Show the runs of a folder, or several side by side.

    Raises:
        DataError: there is no such folder, no run in one, or a history is damaged.
        ConfigError: the figure's file is there already, or one run is no comparison.
        DiskError: the figure cannot be written.
    """
    quiet()
    if words[:1] == ["compare"]:
        _compare(compare_arguments().parse_args(words[1:]))
        return
    from rlhf_lightning.evaluation.runs import runs_in

    given = arguments().parse_args(words)
    found = runs_in(Path(given.folder))
    if not found:
        say(f"{given.folder}: no runs")
        return
    rows = [[str(run.folder.relative_to(given.folder)), *_described(run)] for run in found]
    show_table(["run", "began", "state", "stages", "numbers"], rows)


def _described(run: RunSummary) -> list[str]:
    from rlhf_lightning.evaluation.runs import when

    stages = ", ".join(stage if stage in run.finished else f"({stage})" for stage in run.stages)
    state = f"{run.state}, {run.place}" if run.place else run.state
    return [when(run.began), state, stages, "; ".join(f"{name} {value}" for name, value in run.numbers.items())]


def _compare(given: argparse.Namespace) -> None:
    from rlhf_lightning.checkpoint.places import write_file
    from rlhf_lightning.evaluation.figures import as_png
    from rlhf_lightning.evaluation.runs import comparison_figure, read_run, settings_that_differ, when

    folders = [Path(folder) for folder in given.folders]
    if len({folder.absolute() for folder in folders}) < 2:
        raise ConfigError("runs compare: name at least two runs")
    check_new("--figure", given.figure)
    runs, names = [read_run(folder) for folder in folders], names_of(given.folders)
    rows = [["began", *(when(run.began) for run in runs)]]
    rows += [["state", *(f"{run.state}, {run.place}" if run.place else run.state for run in runs)]]
    for number in dict.fromkeys(name for run in runs for name in run.numbers):
        rows.append([number, *(run.numbers.get(number, "-") for run in runs)])
    rows += [[key, *values] for key, values in settings_that_differ(folders).items()]
    show_table(["", *names], rows)
    figure = comparison_figure(dict(zip(names, folders, strict=True)))
    if figure is None:
        say("no curves: none of them has a history of a stage that trains")
    else:
        say(f"figure  {write_file(Path(given.figure), as_png(figure))}")
