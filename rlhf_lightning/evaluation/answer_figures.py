"""Figures of single answers: how their scores are spread before and after, and whether long ones score higher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf_lightning.console import display
from rlhf_lightning.evaluation.conclusion import opponent, scores_of_answers, winner
from rlhf_lightning.evaluation.plotting import BLUE, ORANGE, label, legend, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (ORANGE, BLUE)


def score_distributions(evaluation: Mapping[str, Any]) -> Figure | None:
    """Histograms of each score over the answers of the newest policy and of the one it is compared with."""
    policies = _answers(evaluation)
    if len(policies) < 2 or not (scores := scores_of_answers(evaluation)):
        return None
    figure, axes = panels(len(scores), "Scores before and after, an entry for each answer")
    for axis, score in zip(axes, scores, strict=True):
        columns = [answers["scores"][score] for answers in policies.values()]
        low, high = min(map(min, columns)), max(map(max, columns))
        for (name, _), values, colour in zip(policies.items(), columns, COLOURS, strict=True):
            look: dict[str, Any] = {"bins": 24, "range": (low, high if high > low else low + 1)}
            axis.hist(values, color=colour, alpha=0.55, label=display.label(name), **look)
        label(axis, f"score of {display.label(score)}", "answers")
        legend(axis)
    return figure


def length_against_score(evaluation: Mapping[str, Any]) -> Figure | None:
    """Each answer of the same two policies as a point: its length and its score."""
    policies = _answers(evaluation)
    if not policies or not (scores := scores_of_answers(evaluation)):
        return None
    figure, axes = panels(len(scores), "Length against score, a point for each answer")
    for axis, score in zip(axes, scores, strict=True):
        for (name, answers), colour in zip(policies.items(), COLOURS, strict=False):
            look: dict[str, Any] = {"s": 14, "alpha": 0.6, "color": colour, "label": display.label(name)}
            axis.scatter(answers["length"], answers["scores"][score], **look)
        label(axis, "length (tokens)", f"score of {display.label(score)}")
        legend(axis)
    return figure


def _answers(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The answers of the policy compared with and of the newest one, where they were kept."""
    if not evaluation.get("policies"):
        return {}
    names = dict.fromkeys((opponent(evaluation), winner(evaluation)))
    found = {name: evaluation["policies"][name].get("answers") for name in names}
    return {name: answers for name, answers in found.items() if answers}
