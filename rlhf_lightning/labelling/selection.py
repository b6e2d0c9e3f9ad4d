"""From scored answers to the best one of each prompt, and what picking it was worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlhf_lightning.functional.theory.best_of_n import best_of_n, best_of_n_kl_bound
from rlhf_lightning.labelling.ranking import can_be_a_row, like_prompt

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
    for group in _groups(records, n):
        usable = [
            record
            for record in group
            if record["finished"] and can_be_a_row(record["completion"]) and not math.isnan(record["scores"][scorer])
        ]
        if not usable:
            continue
        best = max(usable, key=lambda record: record["scores"][scorer])  # the first of equals
        score = {"score": best["scores"][scorer], "scorer": scorer, "n": n}
        rows.append({**best["row"], "completion": like_prompt(best, best["completion"]), **score})
    return rows


def selection_metrics(records: Records, kept: Sequence[Mapping[str, Any]], scorer: str, n: int) -> dict[str, float]:
    """Scores before and after picking.

    ``score_all`` and ``score_kept`` are the means over all answers and over the kept ones. ``expected_best_of_k``, for
    k = 1, 2, 4, ... and n, is the unbiased estimate from all answers (Nakano et al. 2021, arXiv:2112.09332), mean over
    prompts; ``kl_bound`` (nats) is what best-of-n can cost at most.

    Args:
        records: as for `best_rows`.
        kept: what `best_rows` returned.
        scorer: whose scores.
        n: answers per prompt.
    """
    groups = [torch.tensor([r["scores"][scorer] for r in group], dtype=torch.float64) for group in _groups(records, n)]
    sizes = sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n})
    expected = {k: [float(best_of_n(scores, scores, k).proxy) for scores in groups] for k in sizes}
    metrics = {
        "prompts": float(len(groups)),
        "kept": float(len(kept)),
        "score_all": float(torch.cat(groups).mean()),
        "score_kept": sum(row["score"] for row in kept) / max(len(kept), 1),
        "kl_bound": best_of_n_kl_bound(n),
    }
    return metrics | {f"expected_best_of_{k}": sum(values) / len(values) for k, values in expected.items()}


def _groups(records: Records, n: int) -> list[Records]:
    return [records[start : start + n] for start in range(0, len(records), n)]
