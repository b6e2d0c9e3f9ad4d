"""One look for all figures: colours that colour-blind readers can tell apart, quiet axes, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf_lightning.evaluation.history import HistoryRow, moving_mean, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, "Color Universal Design"
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
PALE, DARK = "as logged", "moving mean"
PANEL_WIDTH, PANEL_HEIGHT = 5.2, 3.4  # inches
DOTS_PER_INCH = 130


def panels(count: int, title: str, *, stacked: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` styled axes, beside each other or (``stacked``) above each other with one x axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = (count, 1) if stacked else (1, count)
    height = PANEL_HEIGHT if not stacked else 0.3 + 2.4 * count
    width = PANEL_WIDTH * columns if not stacked else PANEL_WIDTH * 1.25
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    figure.set_layout_engine("constrained", wspace=0.06)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#AAAAAA")
        axis.grid(visible=True, color="#E6E6E6", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9, color="#AAAAAA")
    for axis in axes[:-1] if stacked else []:
        axis.tick_params(labelbottom=False)
    return figure, axes


def label(axis: Axes, x: str, y: str, title: str | None = None) -> None:
    """Axis names (with units) and an optional panel title."""
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    if title:
        axis.set_title(title, fontsize=10, loc="left")


def legend(axis: Axes) -> None:
    """A frameless legend where it hides least, if anything in the panel has a name."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8.5, frameon=False)


def curve(
    axis: Axes,
    rows: Sequence[HistoryRow],
    tag: str,
    colour: str,
    name: str | None = None,
    *,
    scale: float = 1.0,
    smooth: bool = True,
) -> None:
    """A training curve: pale as logged, dark as a moving mean over about a twentieth of it; the legend says so."""
    steps, values = series(rows, tag, "train")
    values = [scale * value for value in values]
    window = len(values) // 20 if smooth else 1
    if window > 1:
        known = axis.get_legend_handles_labels()[1]
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1, label=None if PALE in known else PALE)
        values, name = moving_mean(values, window), name or DARK
    axis.plot(steps, values, color=colour, linewidth=1.8, label=name, marker="o" if len(values) == 1 else None)


def points(axis: Axes, rows: Sequence[HistoryRow], tag: str, colour: str, name: str | None = None) -> None:
    """A validation curve: few points, joined."""
    steps, values = series(rows, tag, "validation")
    if steps:
        axis.plot(steps, values, color=colour, linewidth=1.5, marker="o", markersize=4.5, label=name)
