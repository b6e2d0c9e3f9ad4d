"""What held-out comparisons say about a reward model: is it right, is it honest, does it measure length."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.errors import NumericalError
from rlhf_lightning.functional.diagnostics import (
    accuracy_by_margin,
    calibration,
    clustered_interval,
    cross_calibration,
    fit_temperature,
)
from rlhf_lightning.functional.reward import kwise_pairs, pair_statistics
from rlhf_lightning.metrics.correlation import auroc, length_bias, spearman_within
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.types import ComparisonBatch

MOST_WRONG = 20  # pairs kept of a validation epoch
ENOUGH_PROMPTS = 20  # with fewer, a temperature fitted on half of them says nothing about the other half


class WrongPair(NamedTuple):
    """Two answers to a prompt, as token ids, whose scores stand the wrong way round."""

    margin: float  # score of the better answer minus that of the worse one, below 0
    prompt: list[int]
    better: list[int]
    worse: list[int]
    scores: tuple[float, float]  # of the better and of the worse answer


class Findings(NamedTuple):
    """Of one validation epoch."""

    logged: dict[str, float]  # by tag, without ``val/``
    stored: dict[str, Any]  # plain data for the provenance of the exported folder
    most_wrong: list[WrongPair]  # at most `MOST_WRONG`, those with the largest difference first


class RewardModelEvaluation:
    """Scores of all held-out answers, collected batch by batch, evaluated once over all ranks.

    Whatever is reported depends on the answers alone, not on batches, ranks or their order: the prompts are halved by
    a checksum of their tokens.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[dict[str, Tensor], list[str]]] = []  # columns, and the subset of each pair
        self._wrong: list[WrongPair] = []

    def add(self, scores: Tensor, batch: ComparisonBatch) -> None:
        """Keep the scores [N] of a batch; a padding row of the loader is left out."""
        if not batch.num_prompts:
            return
        better, worse, prompt = kwise_pairs(batch.ranks, batch.prompt_index)
        lengths = batch.lengths.to(scores)
        prompts = _prompt_keys(batch).to(prompt.device)
        part = {
            "score": scores,
            "length": lengths,
            "rank": batch.ranks,
            "owner": prompts[batch.prompt_index],
            "better": scores[better],
            "worse": scores[worse],
            "better_length": lengths[better],
            "worse_length": lengths[worse],
            "prompt": prompts[prompt],
        }
        subsets = [batch.subsets[answer] if batch.subsets else "" for answer in better.tolist()]
        self._parts.append(({name: column.detach().cpu() for name, column in part.items()}, subsets))
        self._wrong = sorted([*self._wrong, *_wrong_pairs(scores, better, worse, batch)])[:MOST_WRONG]

    def findings(self, ranks: Ranks) -> Findings | None:
        """Evaluate what was collected on all ranks, None if there was nothing. Collective.

        Raises:
            NumericalError: a score is not finite.
        """
        gathered = ranks.gather_objects((self._parts, self._wrong))
        parts = [part for columns, _ in gathered for part in columns]
        if not parts:
            return None
        table = {name: torch.cat([columns[name] for columns, _ in parts]) for name in parts[0][0]}
        subsets = [subset for _, part in parts for subset in part]
        if not table["score"].isfinite().all():
            raise NumericalError(
                "a held-out score is not finite; lower reward.optimizer.lr and look at train/grad_norm"
            )
        logged, stored = _of_answers(table)
        if len(table["better"]):
            of_pairs, stored_of_pairs = _of_pairs(table)
            logged |= of_pairs | _by_subset(table["better"] - table["worse"], subsets)
            stored |= stored_of_pairs
        return Findings(logged, stored, sorted(pair for _, wrong in gathered for pair in wrong)[:MOST_WRONG])


def _wrong_pairs(scores: Tensor, better: Tensor, worse: Tensor, batch: ComparisonBatch) -> list[WrongPair]:
    """The pairs [P] of a batch that are most wrong."""
    margins = (scores[better] - scores[worse]).detach()
    found = []
    for pair in margins.argsort()[:MOST_WRONG].tolist():
        if margins[pair] < 0:
            right, left = int(better[pair]), int(worse[pair])
            (prompt, liked), (_, other) = _prompt_and_answer(batch, right), _prompt_and_answer(batch, left)
            found.append(
                WrongPair(float(margins[pair]), prompt, liked, other, (float(scores[right]), float(scores[left])))
            )
    return found


def _prompt_and_answer(batch: ComparisonBatch, row: int) -> tuple[list[int], list[int]]:
    """Token ids of a row, without padding."""
    tokens = batch.input_ids[row][batch.attention_mask[row]].tolist()
    start = len(tokens) - int(batch.lengths[row])
    return tokens[:start], tokens[start:]


def _prompt_keys(batch: ComparisonBatch) -> Tensor:
    """A checksum of the tokens of each prompt in the batch, long [M]; its first answer tells where it ends."""
    keys = []
    for number in range(int(batch.prompt_index.max()) + 1):
        prompt, _ = _prompt_and_answer(batch, int((batch.prompt_index == number).nonzero()[0, 0]))
        digest = hashlib.blake2b(repr(prompt).encode(), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "big", signed=True))
    return torch.tensor(keys)


def _of_answers(table: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, Any]]:
    """Level, spread and length bias over all answers: what is logged, and what is stored."""
    scores = table["score"]
    mean, std = scores.mean().item(), scores.std(correction=0).item()
    bias = length_bias(scores, table["length"])
    logged = {
        "score_mean": mean,
        "score_std": std,
        "score_drift": mean / std if std > 0 else 0.0,
        "length_pearson": bias.pearson,
        "length_spearman": bias.spearman,
        "length_slope": bias.slope_per_token,
        "length_spearman_in_prompt": spearman_within(scores, table["length"], table["owner"]),
        "length_spearman_of_labels": spearman_within(-table["rank"], table["length"], table["owner"]),
    }
    return logged, {"score_mean": mean, "score_std": std}


def _of_pairs(table: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, Any]]:
    """What pairs tell: rewards of either side, calibration before and after a temperature, accuracy by kind."""
    better, worse = table["better"], table["worse"]
    fit, temperature = calibration(better, worse), fit_temperature(better, worse).item()
    margins = accuracy_by_margin(better, worse)
    logged = {"ece": fit.ece.item(), "brier": fit.brier.item(), "nll": fit.nll.item(), "temperature": temperature}
    logged["auroc"] = auroc(better, worse)
    right = clustered_interval(better > worse, table["prompt"])
    logged |= {"accuracy_low": right.low, "accuracy_high": right.high}
    for name, side in (("chosen", better), ("rejected", worse)):
        logged[f"rewards/{name}"] = side.mean().item()
        logged |= {f"rewards/{name}_min": side.min().item(), f"rewards/{name}_max": side.max().item()}
    distinct, half = table["prompt"].unique(return_inverse=True)
    if len(distinct) >= ENOUGH_PROMPTS:
        logged["ece_after_temperature"] = cross_calibration(better, worse, half % 2 == 0).ece.item()
    logged |= {f"accuracy_margin_{int(index) + 1}": accuracy for index, _, accuracy, _ in margins.tolist()}
    longer = table["better_length"] - table["worse_length"]
    for name, half in (("better", longer > 0), ("worse", longer < 0)):
        logged[f"num_pairs_longer_is_{name}"] = float(half.sum())
        if half.any():
            logged[f"accuracy_longer_is_{name}"] = pair_statistics((better - worse)[half])[0].item()
    stored = {
        "temperature": temperature,
        "reliability": _bins(fit.bins, "confidence"),
        "accuracy_by_margin": _bins(margins, "margin"),
    }
    return logged, stored


def _by_subset(margins: Tensor, subsets: list[str]) -> dict[str, float]:
    """Accuracy of the pairs of each named subset, and the mean over subsets (Lambert et al. 2024, arXiv:2403.13787)."""
    logged = {}
    for name in sorted(set(subsets) - {""}):
        rows = torch.tensor([subset == name for subset in subsets])
        logged[f"accuracy/{name}"] = pair_statistics(margins[rows])[0].item()
    return logged | ({"accuracy_mean_of_subsets": sum(logged.values()) / len(logged)} if logged else {})


def _bins(bins: Tensor, last: str) -> dict[str, list[float]]:
    """Bins [n, 4] by the names of their columns, without the index."""
    return {name: bins[:, i].tolist() for name, i in ((last, 3), ("accuracy", 2), ("count", 1))}
