"""A reward service: answers are scored by whatever stands behind an address."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError, RewardFunctionError
from rlhf_lightning.network.in_threads import in_threads
from rlhf_lightning.network.json_client import JsonClient
from rlhf_lightning.rules.ranges import FLOAT32_MAX, require
from rlhf_lightning.scoring.kept_answers import KeptAnswers
from rlhf_lightning.scoring.returned_scores import error_policy
from rlhf_lightning.scoring.scorer import Remembers, completion_texts, like_prompt
from rlhf_lightning.types import Rollout

KEY = "RLHF_LIGHTNING_SCORER_KEY"
_PLURAL = {"prompt": "prompts", "completion": "completions"}
log = logging.getLogger(__name__)


class RemoteScorer(Remembers):
    """Score answers by a service over HTTP, many requests at a time.

    A request is ``POST url`` with the JSON object that a reward function gets as keywords, ``prompts``,
    ``completions`` and the other columns of the rows, each a list of n values; the service answers
    ``{"scores": [...]}``, n numbers, null to abstain (see `rlhf_lightning.scoring.functions.FunctionScorer`). The value
    of the environment variable ``RLHF_LIGHTNING_SCORER_KEY`` is sent as a bearer token.

    An answer with its prompt and columns is asked about once: scores are kept in ``cache_dir``, and a run that goes on
    from a checkpoint gets those it had. A score that came is never lost because another request failed.

    Args:
        url: of the service; stands on the command line.
        name: how the source is called in logs.
        learned: whether a model scores, whose mistakes can be exploited; see `rlhf_lightning.scoring.scorer.Scorer`.
        batch_size: answers per request.
        concurrency: requests at the same time.
        per_second: requests that may begin in a second; None for any number.
        timeout: seconds that one try may take.
        retries: of a request that failed: no connection, HTTP 408, 409, 425, 429 or 5xx, no JSON, another number of
            scores, or one that is not a finite number. Each waits longer, 1, 2, 4, ... seconds at most, or as long as
            the service says.
        deadline: seconds for all answers of a rollout, after which nothing is tried again.
        abstain_value: the score of an answer the service abstains from; None leaves it unjudged (NaN).
        cache_dir: folder of the scores, see `KeptAnswers`; None keeps them in memory.
        on_error: what happens to answers without a score: ``raise`` ends the run, ``abstain`` learns nothing from
            them, a number is their score.

    Each rollout has the details ``requests`` (of this rank) and ``failed_answers`` (1 for an answer without a score).

    Raises:
        ConfigError: an argument out of range, or an address that is not http or https.
    """

    def __init__(
        self,
        url: str,
        name: str = "remote",
        learned: bool = True,
        batch_size: int = 16,
        concurrency: int = 8,
        per_second: float | None = None,
        timeout: float = 60.0,
        retries: int = 6,
        deadline: float = 600.0,
        abstain_value: float | None = 0.0,
        cache_dir: str | None = None,
        on_error: Literal["raise", "abstain"] | float = "raise",
    ) -> None:
        super().__init__()
        require("abstain_value", abstain_value, at_least=-3.4e38, at_most=3.4e38)
        require("batch_size", batch_size, at_least=1, whole=True)
        require("concurrency", concurrency, at_least=1, whole=True)
        require("deadline", deadline, above=0, at_most=1e9, why="seconds")
        self.client = JsonClient(url, "scorer", KEY, timeout, retries, per_second)
        self.kept = KeptAnswers(cache_dir)
        self.name, self.learned = name, learned
        self.batch_size, self.concurrency, self.deadline = batch_size, concurrency, deadline
        self.abstain_value = math.nan if abstain_value is None else abstain_value
        self.on_error = error_policy(on_error)

    def to(self, device: torch.device | str) -> RemoteScorer:
        """Nothing to move."""
        return self

    def score(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Scores, float32 [B].

        Raises:
            RewardFunctionError: an answer got no score and ``on_error`` is ``raise``.
            ConfigError: a column of the rows cannot be sent.
        """
        before = self.client.asked
        scores = self.score_texts(completion_texts(rollout, tokenizer), rollout.rows)
        device = rollout.mask.device
        instead = self.on_error if isinstance(self.on_error, float) else math.nan
        failed = torch.tensor([float(score is None) for score in scores], device=device)
        requests = torch.full_like(failed, self.client.asked - before)
        self._kept.append((rollout, {"requests": requests, "failed_answers": failed}))
        return torch.tensor([instead if score is None else score for score in scores], device=device)

    def score_texts(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """The score of each answer to the prompt of its row; None where there is none and ``on_error`` allows it.

        Raises:
            RewardFunctionError, ConfigError: as `score`.
        """
        samples = [_sample(row, text) for row, text in zip(rows, texts, strict=True)]
        keys = [json.dumps(sample, sort_keys=True) for sample in samples]
        found = {key: self.kept.get([self.client.url, sample]) for key, sample in zip(keys, samples, strict=True)}
        missing = {key: sample for key, sample in zip(keys, samples, strict=True) if found[key] is None}
        try:
            self._ask_for(missing, found)
        except RewardFunctionError as failure:
            lost = sum(found[key] is None for key in keys)
            raise RewardFunctionError(
                f"{failure}\n{lost} of {len(keys)} answers have no score; the scores of the others are kept. Set "
                "scorer.on_error=abstain to learn nothing from such answers, or scorer.on_error=-1.0 for that score"
            ) from failure
        return [None if found[key] is None else self._value(found[key]) for key in keys]

    def _ask_for(self, samples: Mapping[str, Mapping[str, Any]], found: dict[str, Any]) -> None:
        """Add the scores of ``samples`` to ``found``, each as a list of one."""
        over, until, keys = Event(), time.monotonic() + self.deadline, list(samples)

        def ask(part: Sequence[str]) -> None:
            names = sorted({name for key in part for name in samples[key]})
            body = {_PLURAL.get(name, name): [samples[key].get(name) for key in part] for name in names}
            try:
                scores = self.client.ask(body, lambda answer: _scores(answer, len(part)), until, over)
            except RewardFunctionError as failure:
                if self.on_error == "raise":
                    raise
                log.warning("%s; on_error=%s for %d answers", failure, self.on_error, len(part))
                return
            for key, score in zip(part, scores, strict=True):
                found[key] = [score]
                self.kept.put([self.client.url, samples[key]], [score])

        parts = [keys[start : start + self.batch_size] for start in range(0, len(keys), self.batch_size)]
        in_threads(ask, parts, self.concurrency, over)

    def _value(self, kept: Sequence[float | None]) -> float:
        return self.abstain_value if kept[0] is None else float(kept[0])


def _sample(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """What a score depends on: prompt, answer, and the other columns of the row."""
    columns = {name: value for name, value in row.items() if name not in ("prompts", "completions", "completion")}
    for name, value in columns.items():
        try:
            json.dumps(value, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"scorer: the column {name} cannot be sent as JSON ({error}); leave it out") from error
    return columns | {"completion": like_prompt(row["prompt"], text)}


def _scores(answer: Any, count: int) -> list[float | None]:
    """The scores in what a service said.

    >>> _scores({"scores": [1, None]}, 2)
    [1.0, None]
    """
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        what = f"{len(scores)} scores" if isinstance(scores, list) else 'no list "scores"'
        raise ValueError(f"an answer with {what} for {count} completions")
    for score in scores:
        if score is not None and (type(score) not in (int, float) or not abs(score) <= FLOAT32_MAX):
            raise ValueError(f"an answer with the score {str(score)[:100]!r} where a finite number or null is needed")
    return [None if score is None else float(score) for score in scores]
