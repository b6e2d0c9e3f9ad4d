"""From scored answers to ranking rows, as a person (or a noisy stand-in for one) would order them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.scoring.scorer import like_prompt


def ranking_rows(
    records: Sequence[Mapping[str, Any]], judge: str, *, noise: float = 0.0, seed: int = 0
) -> list[dict[str, Any]]:
    """One row ``prompt, completions, ranks`` per prompt, 1 for the best answer.

    With ``noise`` s the judge errs: Gumbel noise of scale s on the scores draws a ranking from the Plackett-Luce
    model, so that two answers are ordered with the Bradley-Terry probability sigmoid((r_a - r_b) / s). Equal scores
    without noise are ties. Answers that say the same are kept once; empty ones, those with a NUL character, which no
    data file may hold, and those the judge abstained from (NaN) not at all; prompts with fewer than two different
    answers are left out.

    Args:
        records: of `SamplingModule`, answers of one prompt next to each other or not.
        judge: whose scores to rank by.
        noise: scale s, in units of the score.
        seed: of the noise.
    """
    draw = random.Random(seed)
    rows = []
    for group in _by_prompt(records):
        scores = {record["completion"]: record["scores"][judge] for record in group}
        answers = {answer: score for answer, score in scores.items() if not math.isnan(score)}
        if len(answers) < 2:
            continue
        noisy = [score + noise * _gumbel(draw) if noise else score for score in answers.values()]
        row = group[0]["row"]
        completions = [like_prompt(row["prompt"], answer) for answer in answers]
        rows.append({**row, "completions": completions, "ranks": ranks(noisy), "judge": judge})
    return rows


def answers_table(
    records: Sequence[Mapping[str, Any]], scorers: Sequence[str], prompts: int = 8
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table with all answers to the first prompts."""
    shown = [record for group in _by_prompt(records)[:prompts] for record in group]
    rows = [[*(r["scores"][name] for name in scorers), r["length"], _text(r["prompt"]), r["completion"]] for r in shown]
    return [*scorers, "tokens", "prompt", "response"], rows


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"[{turn['role']}] {turn['content']}" for turn in prompt)


def candidate_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row ``prompt, completions`` per prompt, for people to rank."""
    rows = []
    for group in _by_prompt(records):
        row, answers = group[0]["row"], dict.fromkeys(record["completion"] for record in group)
        rows.append({**row, "completions": [like_prompt(row["prompt"], a) for a in answers]})
    return rows


def ranks(scores: Sequence[float]) -> list[int]:
    """Competition ranks, 1 for the highest score; equal scores share a rank.

    >>> ranks([0.5, 2.0, 0.5])
    [2, 1, 2]
    """
    return [1 + sum(other > score for other in scores) for score in scores]


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def can_be_a_row(answer: str) -> bool:
    """Whether the stages that read the row will take the answer: it says something, and holds no NUL.

    >>> can_be_a_row(" yes"), can_be_a_row(" "), can_be_a_row("y\\0")
    (True, False, False)
    """
    return bool(answer.strip()) and "\0" not in answer


def _by_prompt(records: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if not can_be_a_row(record["completion"]):
            continue
        groups.setdefault(json.dumps(record["prompt"], sort_keys=True), []).append(record)
    return list(groups.values())


def _gumbel(draw: random.Random) -> float:
    return -math.log(-math.log(draw.random() or 1e-300))
