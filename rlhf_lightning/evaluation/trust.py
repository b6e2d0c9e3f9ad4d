"""What to make of a reward model, in plain words: at chance, no better than counting, or a measure of length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FAR = 0.2  # between two correlations, or between the accuracies of the two halves
ENOUGH_PAIRS = 50  # in each half; with fewer, chance alone parts them so far


def doubts(metrics: Mapping[str, Any]) -> list[str]:
    """A sentence for each reason not to optimise against a reward model; none for a sound one.

    Args:
        metrics: what the reward stage keeps: held-out accuracy and its interval, accuracy of the baselines, and how
            scores and labels go with length. What is missing is not judged.
    """
    return [*_skill(metrics), *_length(metrics)]


def conclusion(metrics: Mapping[str, Any]) -> str:
    """One sentence on a reward model: how often it is right, on long and on short answers, and how honest it is.

    Args:
        metrics: as for `doubts`; empty text where no held-out pair was seen.
    """
    if "val/accuracy_low" not in metrics or "val/accuracy" not in metrics:
        return ""
    parts = [f"the reward model ranks held-out pairs with {accuracy_text(metrics)}"]
    halves = [metrics.get(f"val/accuracy_longer_is_{half}") for half in ("better", "worse")]
    if None not in halves:
        parts.append(f"{halves[0]:.3f} where the better answer is the longer one and {halves[1]:.3f} where the shorter")
    if "val/length_spearman_in_prompt" in metrics:
        scores, labels = metrics["val/length_spearman_in_prompt"], metrics["val/length_spearman_of_labels"]
        parts.append(f"score and length correlate by {scores:+.2f}, labels and length by {labels:+.2f}")
    if "val/ece" in metrics:
        parts.append(f"what it claims is off by {100 * metrics['val/ece']:.0f} percentage points")
    return "; ".join(parts)


def accuracy_text(metrics: Mapping[str, Any]) -> str:
    """Held-out accuracy with its interval and the number of pairs, and how far people agree where that is known."""
    right, low, high, pairs = (
        metrics[f"val/{name}"] for name in ("accuracy", "accuracy_low", "accuracy_high", "num_pairs")
    )
    shown = f"accuracy {right:.3f} on {pairs:.0f} held-out pairs (95% interval {low:.3f} to {high:.3f}; guessing gives "
    return f"{shown}0.5{people_text(metrics)})"


def people_text(metrics: Mapping[str, Any]) -> str:
    """``, people agree on 74 %`` where the rankings were made by several people; else nothing."""
    agree = metrics.get("people_agree")
    return "" if agree is None else f", people agree on {100 * agree:.0f} %"


def _skill(metrics: Mapping[str, Any]) -> list[str]:
    if "val/accuracy_low" not in metrics or "val/accuracy" not in metrics:
        return []
    right, shown = metrics["val/accuracy"], accuracy_text(metrics)
    by_length, by_words = (metrics.get(f"baseline_{name}_accuracy", 0.0) for name in ("length", "words"))
    found = []
    if metrics["val/accuracy_low"] <= 0.5:
        found.append(
            f"THE REWARD MODEL IS AT CHANCE: {shown}. What optimises against it climbs noise. Check the labels, get "
            "more rankings, change reward.optimizer.lr or reward.max_epochs; reward.min_accuracy ends such a run"
        )
    elif right <= by_length:
        found.append(f"THE REWARD MODEL IS NO BETTER THAN LENGTH ALONE, which ranks {by_length:.3f} right: {shown}")
    if metrics["val/accuracy_high"] < by_words:
        found.append(
            f"THE REWARD MODEL IS WORSE THAN COUNTING WORDS, which ranks {by_words:.3f} right: {shown}. It has not "
            "learned what is there to learn: change reward.optimizer.lr or reward.max_epochs"
        )
    return found


def _length(metrics: Mapping[str, Any]) -> list[str]:
    if min(metrics.get(f"val/num_pairs_longer_is_{half}", 0) for half in ("better", "worse")) < ENOUGH_PAIRS:
        return []
    scores, labels = (metrics[f"val/length_spearman_{name}"] for name in ("in_prompt", "of_labels"))
    longer, shorter = (metrics[f"val/accuracy_longer_is_{half}"] for half in ("better", "worse"))
    if abs(scores - labels) <= FAR and abs(longer - shorter) <= FAR:
        return []
    prefers = "longer" if longer - shorter + scores - labels > 0 else "shorter"
    return [
        f"the reward model prefers {prefers} answers more than the labels do: it ranks {longer:.3f} of the pairs right "
        f"whose better answer is the longer one and {shorter:.3f} of those whose better answer is the shorter one; "
        f"Spearman correlation with length inside a prompt {scores:+.2f}, of the labels {labels:+.2f}"
    ]
