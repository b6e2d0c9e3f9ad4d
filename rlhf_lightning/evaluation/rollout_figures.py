"""Figures over rollouts that matter first: score and judge, the critic, and which rollout was exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.console import display
from rlhf_lightning.evaluation.conclusion import opponent, winner
from rlhf_lightning.evaluation.history import HistoryRow, series
from rlhf_lightning.evaluation.plotting import BLUE, GREEN, GREY, ORANGE, RED, curve, label, legend, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[HistoryRow]
ROLLOUT = "rollout"


def score_and_judge(rows: Rows, evaluation: Mapping[str, Any] | None = None) -> Figure | None:
    """The score that is learned from and what monitors say, over rollouts, each with where the policy started."""
    monitors = dict.fromkeys(tag for row in rows for tag in row if tag.startswith("monitor/"))
    if not series(rows, "objective/scores")[0]:
        return None
    figure, axes = panels(1 + len(monitors), "Score and judge", stacked=True)
    names = {"objective/scores": (evaluation or {}).get("proxy"), **{t: t.removeprefix("monitor/") for t in monitors}}
    for axis, (tag, score), colour in zip(axes, names.items(), [BLUE, *[RED] * len(monitors)], strict=True):
        what = "score that is learned from" if tag == "objective/scores" else f"judge {display.label(str(score))}"
        curve(axis, rows, tag, colour, "moving mean")
        start = _start(evaluation or {}, str(score))
        if start is not None:
            axis.axhline(start[1], color=GREY, linewidth=1.2, linestyle="--", label=start[0])
        label(axis, ROLLOUT if axis is axes[-1] else "", "mean score", what)
        legend(axis)
    return figure


def critic(rows: Rows) -> Figure | None:
    """How much of the returns the critic predicts, and its loss."""
    if not series(rows, "val/var_explained")[0]:
        return None
    figure, (left, right) = panels(2, "Critic")
    curve(left, rows, "val/var_explained", BLUE)
    left.axhline(0.0, color=GREY, linewidth=1, linestyle="--", label="no better than a constant")
    left.set_ylim(top=1.02, bottom=max(min(series(rows, "val/var_explained")[1]), -1.0) - 0.05)
    label(left, ROLLOUT, "share of the variance of the returns", "Explained variance")
    curve(right, rows, "loss/value_avg", ORANGE)
    label(right, ROLLOUT, "squared error (score²)", "Loss")
    legend(left)
    return figure


def mark_exported(figure: Figure, rollout: int) -> None:
    """A line at the rollout whose policy was exported."""
    for axis in figure.axes:
        name = f"exported: {rollout}" if axis is figure.axes[0] else None
        axis.axvline(rollout, color=GREEN, linewidth=1.3, linestyle=":", label=name)
    legend(figure.axes[0])


def _start(evaluation: Mapping[str, Any], score: str) -> tuple[str, float] | None:
    """A name for the policy that the newest one is compared with, and its mean of a score."""
    if not evaluation.get("policies"):
        return None
    name = opponent(evaluation)
    found = evaluation["policies"][name]["summary"]["scores"].get(score)
    known = found is not None and name != winner(evaluation)
    return (f"start ({display.label(name)})", found["mean"]) if known else None
