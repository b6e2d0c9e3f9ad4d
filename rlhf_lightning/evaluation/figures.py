"""Figures of a run, drawn from its history and evaluation. Each function returns None when there is nothing to draw."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.checkpoint.places import write_file
from rlhf_lightning.console import display
from rlhf_lightning.evaluation.answer_figures import length_against_score, score_distributions
from rlhf_lightning.evaluation.history import HistoryRow, moving_mean, series
from rlhf_lightning.evaluation.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    curve,
    label,
    legend,
    panels,
    points,
)
from rlhf_lightning.evaluation.rollout_figures import ROLLOUT, critic, mark_exported, score_and_judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[HistoryRow]
STEP = "optimizer step"
MARKERS = ("s", "D", "^", "v", "P", "X")


def sft_loss(rows: Rows) -> Figure | None:
    """Training and validation loss of supervised fine-tuning, nats per token."""
    if not series(rows, "train/loss")[0]:
        return None
    figure, (axis,) = panels(1, "Supervised fine-tuning")
    curve(axis, rows, "train/loss", BLUE, "training")
    points(axis, rows, "val/loss", RED, "validation")
    label(axis, STEP, "loss (nats per token)")
    legend(axis)
    return figure


def reward_model_accuracy(rows: Rows, people: float | None = None) -> Figure | None:
    """Pairwise accuracy and margin of the reward model.

    Args:
        rows: of its history.
        people: share of the pairs on which the people who ranked agree with each other, if that is known.
    """
    if not series(rows, "train/accuracy")[0]:
        return None
    figure, (left, right) = panels(2, "Reward model")
    curve(left, rows, "train/accuracy", BLUE, "training")
    points(left, rows, "val/accuracy", RED, "validation")
    left.axhline(0.5, color=GREY, linewidth=1, linestyle="--", label="chance")
    if people is not None:
        left.axhline(people, color=GREEN, linewidth=1, linestyle=":", label=f"people agree on {100 * people:.0f} %")
    left.set_ylim(top=1.0)
    label(left, STEP, "share of pairs ranked right", "Accuracy")
    curve(right, rows, "train/margin", BLUE, "training")
    points(right, rows, "val/margin", RED, "validation")
    label(right, STEP, "score of better minus worse", "Margin")
    legend(left)
    legend(right)
    return figure


def reliability(bins: Mapping[str, Sequence[float]]) -> Figure | None:
    """Reliability diagram: how often the model is right when it claims to be that sure.

    Args:
        bins: ``confidence``, ``accuracy`` and ``count``, one entry for each bin; empty bins are left out.
    """
    filled = [entry for entry in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True) if entry[2] > 0]
    if not filled:
        return None
    confidence, accuracy, count = zip(*filled, strict=True)
    figure, (axis,) = panels(1, "Reward model: calibration")
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfectly calibrated")
    axis.vlines(confidence, confidence, accuracy, color=RED, linewidth=1.2, label="calibration error")
    sizes = [25 + 175 * n / max(count) for n in count]
    axis.scatter(confidence, accuracy, s=sizes, color=BLUE, alpha=0.85, zorder=3, label="bin (area: its pairs)")
    total = sum(count)
    error = sum(n * abs(c - a) for c, a, n in filled) / total
    lowest = 0.5 if min(confidence) >= 0.5 else 0.0
    axis.set_xlim(lowest, 1.02)
    axis.set_ylim(min(lowest, min(accuracy)) - 0.03, 1.03)
    label(
        axis,
        "predicted probability of the favoured answer",
        "share of pairs that agree",
        f"ECE {error:.3f}, {total:.0f} pairs",
    )
    axis.legend(fontsize=8.5, frameon=False, markerscale=0.6)
    return figure


def reward_kl_frontier(rows: Rows, evaluation: Mapping[str, Any] | None = None) -> Figure | None:
    """What each nat of KL bought: the score PPO optimises, and the judge's score where it is known.

    The judge's panel appears when ``evaluation`` holds policies with that score and a KL, or when the history has a
    column ``monitor/<judge>``. Same axes as Gao et al. 2022, arXiv:2210.10760, figure 1, with KL unrooted.
    """
    if not series(rows, "objective/scores")[0]:
        return None
    judge = str((evaluation or {}).get("judge", ""))
    gold_tag = f"monitor/{judge}"
    markers = _policy_points(evaluation or {}, judge)
    has_gold = bool(markers or series(rows, gold_tag)[0])
    figure, axes = panels(2 if has_gold else 1, "Reward against KL from the reference")
    path = _path(axes[0], rows, "objective/scores")
    label(axes[0], "KL (nats per response)", "mean score", "Score that PPO optimises")
    if has_gold:
        _path(axes[1], rows, gold_tag)
        _mark_policies(axes[1], markers)
        label(axes[1], "KL (nats per response)", "mean score", f"Score of the judge: {display.label(judge)}")
    bar = figure.colorbar(path, ax=axes, pad=0.01)
    bar.set_label(ROLLOUT, fontsize=9)
    bar.outline.set_visible(False)
    return figure


def kl_control(rows: Rows) -> Figure | None:
    """KL against its target, and the coefficient that steers it."""
    if not series(rows, "objective/kl")[0]:
        return None
    figure, (top, bottom) = panels(2, "KL control", stacked=True)
    curve(top, rows, "objective/kl", BLUE, "measured")
    steps, targets = series(rows, "objective/kl_target", "train")
    if any(targets):
        top.plot(steps, targets, color=GREY, linewidth=1.3, linestyle="--", label="target")
    label(top, "", "KL (nats per response)")
    curve(bottom, rows, "objective/kl_coef", ORANGE, smooth=False)
    label(bottom, ROLLOUT, "beta (score per nat)")
    legend(top)
    return figure


def update_health(rows: Rows) -> Figure | None:
    """Importance ratio, clip fraction and entropy: how hard each update pulls."""
    if not series(rows, "policy/clipfrac_avg")[0] and not series(rows, "objective/entropy")[0]:
        return None
    figure, (left, middle, right) = panels(3, "PPO updates")
    curve(left, rows, "val/ratio", BLUE)
    left.axhline(1.0, color=GREY, linewidth=1, linestyle="--")
    left.ticklabel_format(axis="y", useOffset=False)
    label(left, ROLLOUT, "new / old probability", "Mean importance ratio")
    curve(middle, rows, "policy/clipfrac_avg", RED, scale=100)
    middle.set_ylim(bottom=0)
    label(middle, ROLLOUT, "tokens clipped (%)", "Clip fraction")
    per_token = bool(series(rows, "policy/entropy_avg")[0])
    curve(right, rows, "policy/entropy_avg" if per_token else "objective/entropy", GREEN)
    label(right, ROLLOUT, f"entropy (nats per {'token' if per_token else 'response'})", "Entropy")
    return figure


def response_shape(rows: Rows) -> Figure | None:
    """Length of the responses, and the share that ended by themselves."""
    if not series(rows, "completions/mean_length")[0]:
        return None
    figure, (left, right) = panels(2, "Responses")
    curve(left, rows, "completions/mean_length", PURPLE)
    left.set_ylim(bottom=0)
    label(left, ROLLOUT, "mean length (tokens)", "Length")
    curve(right, rows, "completions/eos_rate", GREEN, scale=100)
    right.set_ylim(-3, 103)
    label(right, ROLLOUT, "responses that ended (%)", "EOS rate")
    return figure


def save_figures(
    histories: Mapping[str, Rows],
    folder: str | Path,
    evaluation: Mapping[str, Any] | None = None,
    bins: Mapping[str, Sequence[float]] | None = None,
) -> list[Path]:
    """Draw every figure there is data for into ``folder`` as PNG; returns the files in reading order.

    Args:
        histories: rows by stage: ``sft``, ``reward``, ``ppo``.
        folder: made if needed.
        evaluation: content of ``evaluation.json``, for the judge's scores and the rollout that was exported.
        bins: reliability bins of the reward model, see `reliability`.
    """
    folder = Path(folder)
    ppo = histories.get("ppo", [])
    over_rollouts = {
        "score_and_judge": score_and_judge(ppo, evaluation),
        "kl_control": kl_control(ppo),
        "response_shape": response_shape(ppo),
        "update_health": update_health(ppo),
        "critic": critic(ppo),
    }
    exported = (evaluation or {}).get("exported")
    people = ((evaluation or {}).get("reward_model") or {}).get("people_agree")
    for figure in over_rollouts.values():
        if figure is not None and exported is not None:
            mark_exported(figure, int(exported))
    drawn = {
        **over_rollouts,
        "reward_kl_frontier": reward_kl_frontier(ppo, evaluation),
        "score_distributions": score_distributions(evaluation or {}),
        "length_against_score": length_against_score(evaluation or {}),
        "reward_model_accuracy": reward_model_accuracy(histories.get("reward", []), people),
        "reward_model_reliability": reliability(bins) if bins else None,
        "sft_loss": sft_loss(histories.get("sft", [])),
    }
    paths = []
    for name, figure in drawn.items():
        if figure is not None:
            paths.append(write_file(folder / f"{name}.png", as_png(figure)))
    return paths


def as_png(figure: Figure) -> bytes:
    """The bytes of a PNG file; equal figures give equal bytes."""
    image = io.BytesIO()
    figure.savefig(image, metadata={"Software": None})
    return image.getvalue()


def _path(axis: Axes, rows: Rows, tag: str) -> Any:
    """Points (KL, ``tag``) of the training rows coloured by step, with their moving mean as a line."""
    both = [row for row in rows if tag in row and "objective/kl" in row]
    steps, values = series(both, tag, "train")
    kl = dict(zip(*series(both, "objective/kl", "train"), strict=True))
    kept = [(step, kl[step], value) for step, value in zip(steps, values, strict=True) if step in kl]
    x, y = [entry[1] for entry in kept], [entry[2] for entry in kept]
    window = max(len(kept) // 12, 1)
    axis.plot(moving_mean(x, window), moving_mean(y, window), color=GREY, linewidth=1.4, zorder=2)
    ends = series(rows, "step", "train")[0]  # one colour scale for every panel
    colours = [entry[0] for entry in kept]
    return axis.scatter(x, y, c=colours, vmin=min(ends), vmax=max(ends), cmap="viridis", s=16, alpha=0.85, zorder=3)


def _policy_points(evaluation: Mapping[str, Any], judge: str) -> list[tuple[str, float, float, float]]:
    found = []
    for name, policy in evaluation.get("policies", {}).items():
        kl, score = policy["summary"].get("kl"), policy["summary"]["scores"].get(judge)
        if kl is not None and score is not None:
            found.append((name, kl["mean"], score["mean"], score["stderr"] or 0.0))
    return found


def _mark_policies(axis: Axes, markers: list[tuple[str, float, float, float]]) -> None:
    """Each policy as a named mark whose bar spans 95 percent of the uncertainty of its mean."""
    for i, (name, kl, mean, stderr) in enumerate(markers):
        colour = (BLUE, RED, PURPLE, ORANGE, GREEN)[i % 5]
        look: Any = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "markersize": 7, "capsize": 3}
        axis.errorbar([kl], [mean], yerr=[1.96 * stderr], zorder=4, label=display.label(name), **look)
    legend(axis)
