"""Compare policies by their samples: pure functions on records, no model and no file involved.

A record is one response: ``{"prompt": str or messages, "completion": str, "scores": {name: float},
"length": int (tokens), "finished": bool, "kl": float or None (nats), "nll_ref": float or None (nats)}``; other keys are
ignored. A mean comes with its standard error over prompts: several responses to one prompt are averaged first, because
they are not independent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlhf_lightning.errors import DataError
from rlhf_lightning.functional.diagnostics import distinct_n, repetition_n, wilson_interval
from rlhf_lightning.functional.length_control import length_controlled_win_rate

Record = Mapping[str, Any]
Estimate = dict[str, float | None]
"""``{"mean": x, "stderr": s}``; ``stderr`` is None with a single prompt."""


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """What the responses of one policy are like.

    Returns:
        ``count``, ``prompts``; ``scores`` (an estimate for each name); ``length`` (tokens), ``kl`` and ``nll_ref``
        (nats per response, None where no record has them), each an estimate; ``eos_rate``; over words: ``distinct_1``,
        ``distinct_2`` (share of n-grams that are different, all responses pooled) and ``repetition_3`` (share of
        3-grams that repeat an earlier one of the same response, mean over responses); ``same_answers``: share of the
        responses that are, word for word, also one to an earlier prompt.

    Raises:
        DataError: no records, records with different score names, or a score that is not finite; names the record.
    """
    names = _score_names(records)
    words = _words(records)
    return {
        "count": len(records),
        "prompts": len({_key(record) for record in records}),
        "scores": {name: _estimate(records, [record["scores"][name] for record in records]) for name in names},
        "length": _estimate(records, [record["length"] for record in records]),
        "kl": _optional(records, "kl"),
        "nll_ref": _optional(records, "nll_ref"),
        "eos_rate": sum(bool(record["finished"]) for record in records) / len(records),
        "distinct_1": distinct_n(words, 1),
        "distinct_2": distinct_n(words, 2),
        "repetition_3": math.fsum(repetition_n(response, 3) for response in words) / len(words),
        "same_answers": _same_answers(records),
    }


def win_rate(records_a: Sequence[Record], records_b: Sequence[Record], judge: str) -> dict[str, Any]:
    """How often A's response gets a higher score than B's to the same prompt; a tie is half a win.

    The k-th response of A to a prompt meets the k-th of B; what has no counterpart is counted and left out.

    Args:
        records_a: the policy whose wins are counted.
        records_b: its opponent.
        judge: name of the score that decides, higher is better.

    Returns:
        ``judge, wins, ties, losses, unpaired, win_rate, low, high``; the bounds are a 95 percent Wilson interval,
        narrower than the truth where several responses share a prompt. ``length_controlled``: ``win_rate, low, high``
        at equal length, or None, see `rlhf_lightning.functional.length_control`.

    Raises:
        DataError: no prompt in common, or a record without a finite score of that name.
    """
    ours, theirs = _by_prompt(records_a, judge), _by_prompt(records_b, judge)
    shared = [(n, pair) for n, key in enumerate(ours) for pair in zip(ours[key], theirs.get(key, ()), strict=False)]
    if not shared:
        raise DataError("win_rate: the two policies answered no prompt in common; sample both from the same prompts")
    prompts, pairs = zip(*shared, strict=True)
    outcomes = [(1.0 if a > b else 0.0 if a < b else 0.5) for (a, _), (b, _) in pairs]
    controlled = length_controlled_win_rate(
        torch.tensor(outcomes), torch.tensor([float(a - b) for (_, a), (_, b) in pairs]), torch.tensor(prompts)
    )
    wins, ties = outcomes.count(1.0), outcomes.count(0.5)
    losses = len(pairs) - wins - ties
    rate = wilson_interval(wins, ties, losses)
    return {
        "judge": judge,
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "unpaired": len(records_a) + len(records_b) - 2 * len(pairs),
        "win_rate": rate.win_rate,
        "low": rate.low,
        "high": rate.high,
        "length_controlled": controlled and controlled._asdict(),
    }


def compare(
    policies: Mapping[str, Sequence[Record]], judge: str, *, proxy: str | None = None, samples: int = 8
) -> dict[str, Any]:
    """Summaries, samples and win rates of every later policy against every earlier one.

    Returns:
        ``judge, proxy, policies, win_rates``, as in ``evaluation.json``; see `rlhf_lightning.evaluation.report`.

    Args:
        policies: records by name, oldest first, such as ``base``, ``sft``, ``ppo``.
        judge: name of the score that decides.
        proxy: name of the score PPO optimised; None takes the first score that is not the judge, if there is one.
        samples: responses kept for reading: the first response to each of the first so many prompts.

    Raises:
        DataError: as `summarise` and `win_rate`.
    """
    names, entries = list(policies), describe(policies, samples)
    win_rates = {
        f"{later} vs {earlier}": win_rate(policies[later], policies[earlier], judge)
        for later, earlier in later_and_earlier(names)
    }
    if proxy is None and names:
        others = [name for name in entries[names[-1]]["summary"]["scores"] if name != judge]
        proxy = others[0] if others else None
    return {"judge": judge, "proxy": proxy, "policies": entries, "win_rates": win_rates}


def describe(policies: Mapping[str, Sequence[Record]], samples: int = 8) -> dict[str, dict[str, Any]]:
    """Of each policy its `summarise`, the ``samples`` for reading, and lengths and scores of all its ``answers``.

    Raises:
        DataError: as `summarise`.
    """
    return {
        name: {"summary": summarise(records), "samples": _first_samples(records, samples), "answers": _answers(records)}
        for name, records in policies.items()
    }


def later_and_earlier(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every later policy with every earlier one.

    >>> later_and_earlier(["base", "sft", "ppo"])
    [('sft', 'base'), ('ppo', 'base'), ('ppo', 'sft')]
    """
    return [(later, earlier) for i, later in enumerate(names) for earlier in names[:i]]


def _words(records: Sequence[Record]) -> list[list[int]]:
    """Completions as lists of word numbers: one number for each different word of the records."""
    numbers: dict[str, int] = {}
    return [[numbers.setdefault(w, len(numbers)) for w in str(record["completion"]).split()] for record in records]


def _same_answers(records: Sequence[Record]) -> float:
    """Share of the responses that were given to an earlier prompt, too."""
    first: dict[str, str] = {}
    return sum(first.setdefault(str(r["completion"]), _key(r)) != _key(r) for r in records) / len(records)


def _estimate(records: Sequence[Record], values: Sequence[float]) -> Estimate:
    by_prompt: dict[str, list[float]] = {}
    for record, value in zip(records, values, strict=True):
        by_prompt.setdefault(_key(record), []).append(float(value))
    means = [math.fsum(group) / len(group) for group in by_prompt.values()]
    mean = math.fsum(means) / len(means)
    if len(means) < 2:
        return {"mean": mean, "stderr": None}
    variance = math.fsum((value - mean) ** 2 for value in means) / (len(means) - 1)
    return {"mean": mean, "stderr": math.sqrt(variance / len(means))}


def _optional(records: Sequence[Record], field: str) -> Estimate | None:
    having = [record for record in records if record.get(field) is not None]
    return _estimate(having, [record[field] for record in having]) if having else None


def _score_names(records: Sequence[Record]) -> list[str]:
    if not records:
        raise DataError("no records to summarise; did the sampling stage write any response?")
    names = list(records[0]["scores"])
    for i, record in enumerate(records):
        if set(record["scores"]) != set(names):
            raise DataError(
                f"record {i}: scores {sorted(record['scores'])} differ from those of record 0, {sorted(names)}"
            )
        for name in names:
            _finite_score(record, name, i)
    return names


def _finite_score(record: Record, name: str, i: int) -> float:
    score = record["scores"].get(name)
    if score is None or not math.isfinite(score):
        raise DataError(f"record {i}: score {name!r} is {score}; every response needs a finite score of each scorer")
    return float(score)


def _by_prompt(records: Sequence[Record], judge: str) -> dict[str, list[tuple[float, int]]]:
    """Score and length of every response, by prompt."""
    groups: dict[str, list[tuple[float, int]]] = {}
    for i, record in enumerate(records):
        groups.setdefault(_key(record), []).append((_finite_score(record, judge, i), record["length"]))
    return groups


def _answers(records: Sequence[Record]) -> dict[str, Any]:
    """Length and scores of every response, as columns, for figures."""
    scores = {name: [round(float(r["scores"][name]), 5) for r in records] for name in records[0]["scores"]}
    return {"length": [r["length"] for r in records], "scores": scores}


def _first_samples(records: Sequence[Record], count: int) -> list[dict[str, Any]]:
    firsts: dict[str, Record] = {}
    for record in records:
        firsts.setdefault(_key(record), record)
    kept = ("prompt", "completion", "scores", "length", "finished", "kl")
    return [{field: record.get(field) for field in kept} for record in list(firsts.values())[:count]]


def _key(record: Record) -> str:
    prompt = record["prompt"]
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
