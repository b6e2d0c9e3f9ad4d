"""Answers that are there already, scored by a reward model: what `rlhf-lightning score` and the stage `score` do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.data.exchanges import ADDED, Exchanges
from rlhf_lightning.data.rows.bench import is_bench
from rlhf_lightning.evaluation.reward_bench import figures, judged_row
from rlhf_lightning.scoring.reward_model import RewardModelScorer

AT_ONCE = 256  # rows
BENCH = "RewardBench 2"


def scored(rows: Sequence[Exchanges], scorer: RewardModelScorer) -> Iterator[dict[str, Any]]:
    """Each row with its score or scores, as PPO sees them.

    Args:
        rows: as `rlhf_lightning.data.exchanges.read_exchanges` reads them. The prompts of RewardBench 2 are a user's
            message where the reward model has a chat template.
        scorer: on the device where it is to compute.
    """
    for at in range(0, len(rows), AT_ONCE):
        part = rows[at : at + AT_ONCE]
        pairs = [(pair, row) for row, exchanges in part for pair in exchanges.values()]
        if scorer.tokenizer.chat_template:
            pairs = [(_asked(pair) if is_bench(row) else pair, row) for pair, row in pairs]
        found = scorer.score_texts([p for (p, _), _ in pairs], [a for (_, a), _ in pairs], [row for _, row in pairs])
        scores = iter(found)
        for row, exchanges in part:
            yield {**row, **_columns({name: next(scores) for name in exchanges})}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``answers`` (how many), ``mean``, ``std`` of their scores; of rows of RewardBench 2 the figures of that, too.

    Args:
        rows: at least one, as `scored` gives them.
    """
    given = [row[name] for row in rows for name in ADDED if name in row]
    scores = [score for value in given for score in (value if isinstance(value, list) else [value])]
    mean = math.fsum(scores) / len(scores)
    std = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    judged = [judged_row(row, row["scores"]) for row in rows if is_bench(row)]
    bench = {f"{BENCH}/{name}": value for name, value in figures(judged).items()} if judged else {}
    return {"answers": float(len(scores)), "mean": mean, "std": std, **bench}


def sentences(found: Mapping[str, float], normalised: bool) -> list[str]:
    """A summary in a line or two; ``normalised`` says whether mean and standard deviation of the folder were used."""
    unit = "held-out answers of its training: 0 ± 1" if normalised else "as the model gives them"
    spread = f"{found['mean']:.3f} ± {found['std']:.3f}"
    lines = [f"{found['answers']:.0f} answers: {spread} (mean and standard deviation; {unit})"]
    bench = {name.partition("/")[2]: value for name, value in found.items() if name.startswith(BENCH)}
    shares = ", ".join(f"{name} {100 * share:.1f}" for name, share in bench.items())
    return [*lines, f"{BENCH}: {shares}"] if bench else lines


def _asked(exchange: tuple[Any, Any]) -> tuple[Any, Any]:
    """An exchange whose prompt is a user's message."""
    prompt, answer = exchange
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, answer


def _columns(scores: Mapping[str, float]) -> dict[str, Any]:
    """The columns to add: scores of numbered answers are one list."""
    return {"scores": list(scores.values())} if "0" in scores else dict(scores)
