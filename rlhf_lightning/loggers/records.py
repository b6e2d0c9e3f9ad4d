"""What a logger is given besides curves: the config, tables of samples, figures, and the numbers of the end.

Each function takes any Lightning logger. TensorBoard, CSV, MLflow and Comet have ways of their own; others get a table
or an image if they have ``log_table`` or ``log_image`` as Lightning's `WandbLogger` has them. Call them on rank 0 only.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from rlhf_lightning.console.display import fence, markdown, plain
from rlhf_lightning.loggers.files import event_writer
from rlhf_lightning.loggers.trackio import TrackioLogger
from rlhf_lightning.private_api.tensorboard import write_hyperparameters

Value = str | int | float | bool
HEADLINES = ("best/", "evaluate/", "objective/", "monitor/", "val/", "rank/", "train/")
"""Beginnings of tags that come first where metrics stand beside each other."""


def log_config(logger: Logger, config: Mapping[str, Any], text: str) -> None:
    """The resolved config, before anything is logged.

    Args:
        logger: any.
        config: plain dicts and lists, without secrets.
        text: the same as YAML, for TensorBoard, whose own way of showing it is a table of what was chosen.
    """
    if isinstance(logger, TensorBoardLogger):
        ends = fence(text)
        event_writer(logger).add_text("config", f"{ends}yaml\n{plain(text)}\n{ends}", 0)
    else:
        logger.log_hyperparams(dict(config))


def log_table(logger: Logger, key: str, columns: Sequence[str], rows: Sequence[Sequence[Value]], step: int) -> None:
    """A table of texts and numbers; several under one key are told apart by their step.

    Args:
        logger: any.
        key: what the table is called, for example ``samples``.
        columns: their names.
        rows: a value for each column.
        step: on the axis of the curves.
    """
    stepped = [[step, *row] for row in rows]
    if isinstance(logger, TensorBoardLogger):
        event_writer(logger).add_text(key, markdown_table(columns, rows), step)
    elif isinstance(logger, CSVLogger):
        _append(Path(logger.log_dir) / f"{key}.csv", ["step", *columns], stepped)
    elif isinstance(logger, MLFlowLogger):
        table = dict(zip(("step", *columns), map(list, zip(*stepped, strict=True)), strict=True))
        logger.experiment.log_table(logger.run_id, table, f"{key}.json")
    elif isinstance(logger, CometLogger):
        logger.experiment.log_table(f"{key}-{step}.csv", stepped, headers=["step", *columns])
    elif hasattr(logger, "log_table"):
        logger.log_table(key, columns=["step", *columns], data=stepped, step=step)


def log_figure(logger: Logger, key: str, image: Path, step: int) -> None:
    """A PNG file as an image; the files that `CSVLogger` writes hold none."""
    if isinstance(logger, TensorBoardLogger):
        from matplotlib.image import imread

        event_writer(logger).add_image(key, imread(image), step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(image), "figures")
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(str(image), name=key, step=step)
    elif hasattr(logger, "log_image"):
        logger.log_image(key, images=[str(image)], step=step)


def log_end(logger: Logger, metrics: Mapping[str, float], curves: Collection[str], chosen: Mapping[str, Value]) -> None:
    """The last metrics of a stage, and in TensorBoard the table that compares runs by what was chosen.

    Args:
        logger: any.
        metrics: all of them.
        curves: tags among them that the logger has seen, and so knows the last value of.
        chosen: by dotted key, what the command line has chosen; for TensorBoard's page of hyperparameters.
    """
    if isinstance(logger, TensorBoardLogger):
        event_writer(logger)  # which the fit has closed
    more = {name: value for name, value in metrics.items() if name not in curves}
    if more:
        logger.log_metrics(more, None)
    if isinstance(logger, TensorBoardLogger):
        ordered = sorted(metrics, key=lambda tag: (_rank(tag), tag))
        write_hyperparameters(event_writer(logger), chosen, {tag: metrics[tag] for tag in ordered})
    logger.save()


def close(logger: Logger, failed: bool = False) -> None:
    """End what the logger has begun, so that the next stage begins a run of its own."""
    logger.finalize("failed" if failed else "success")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=int(failed))
    elif isinstance(logger, CometLogger):
        logger.experiment.end()
    elif isinstance(logger, TrackioLogger):
        logger.end()


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    """Rows of numbers and texts as Markdown, texts as they are.

    >>> print(markdown_table(["score", "answer"], [[0.5, "a|b"]]))
    | score | answer |
    | ---: | --- |
    | 0.500 | a&#124;b |
    """
    numbers = [all(isinstance(value, (int, float)) for value in column) for column in zip(*rows, strict=True)]
    head = [list(map(markdown, columns)), ["---:" if number else "---" for number in numbers]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [*head, *(list(map(_cell, row)) for row in rows)])


def _cell(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return markdown(str(value), newline="<br>") or " "


def _rank(tag: str) -> int:
    return next((place for place, start in enumerate(HEADLINES) if tag.startswith(start)), len(HEADLINES))


def _append(file: Path, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    begins = not file.exists()
    with file.open("a", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows] if begins else rows)
