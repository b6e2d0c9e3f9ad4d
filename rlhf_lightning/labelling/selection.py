"""From scored answers to the best one of each prompt, and what picking it was worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlhf_lightning.functional.theory.best_of_n import best_of_n, best_of_n_kl_bound
from rlhf_lightning.labelling.ranking import can_be_a_row
from rlhf_lightning.scoring.scorer import like_prompt

Records = Sequence[Mapping[str, Any]]


def best_rows(records: Records, scorer: str, n: int) -> list[dict[str, Any]]:
    """One demonstration per prompt: the answer with the highest score, the first one of equals.

    Only answers that ended by themselves, can be a row and were judged (no NaN) can be kept, since a demonstration
    ends with EOS; prompts without such an answer are left out. The row keeps its other columns and gets ``score``,
    ``scorer`` and ``n``.

    Args:
        records: of `SamplingModule`, the ``n`` answers of each prompt next to each other.
        scorer: whose scores to go by.
        n: answers per prompt.
    """
    rows = []
    for group in _usable(records, scorer, n):
        best = max(group, key=lambda record: record["scores"][scorer])  # the first of equals
        score = {"score": best["scores"][scorer], "scorer": scorer, "n": n}
        rows.append({**best["row"], "completion": like_prompt(best["prompt"], best["completion"]), **score})
    return rows


def selection_metrics(records: Records, kept: Sequence[Mapping[str, Any]], scorer: str, n: int) -> dict[str, float]:
    """Scores before and after picking.

    ``score_all`` and ``score_kept`` are the means over all answers that were judged and over the kept ones.
    ``expected_best_of_k``, for k = 1, 2, 4, ... and n, is the unbiased estimate from the answers that can be kept
    (Nakano et al. 2021, arXiv:2112.09332), mean over prompts that have one; all of them where there are fewer than k.
    ``kl_bound`` (nats) is what best-of-n can cost at most.

    Args:
        records: as for `best_rows`.
        kept: what `best_rows` returned.
        scorer: whose scores.
        n: answers per prompt.
    """
    given = [score for record in records if not math.isnan(score := record["scores"][scorer])]
    metrics = {
        "prompts": float(len(records) // n),
        "kept": float(len(kept)),
        "score_all": sum(given) / max(len(given), 1),
        "score_kept": sum(row["score"] for row in kept) / max(len(kept), 1),
        "kl_bound": best_of_n_kl_bound(n),
    }
    usable = _usable(records, scorer, n)
    groups = [torch.tensor([r["scores"][scorer] for r in group], dtype=torch.float64) for group in usable]
    for k in sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n}):
        values = [float(best_of_n(scores, scores, min(k, len(scores))).proxy) for scores in groups]
        metrics[f"expected_best_of_{k}"] = sum(values) / max(len(values), 1)
    return metrics


def _usable(records: Records, scorer: str, n: int) -> list[list[Mapping[str, Any]]]:
    """The answers to each prompt that `best_rows` may keep; prompts without one are left out."""
    groups = (records[start : start + n] for start in range(0, len(records), n))
    usable = [
        [
            record
            for record in group
            if record["finished"] and can_be_a_row(record["completion"]) and not math.isnan(record["scores"][scorer])
        ]
        for group in groups
    ]
    return [group for group in usable if group]
