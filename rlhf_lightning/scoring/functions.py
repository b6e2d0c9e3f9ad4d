"""Python functions as scorers, with the signature TRL users know: ``f(prompts, completions, **columns)``."""

from __future__ import annotations

import bdb
import copy
import inspect
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError, RewardFunctionError
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.scoring.isolation.process import CallFailed, IsolatedFunction
from rlhf_lightning.scoring.isolation.worker import describe, load, plain, settled
from rlhf_lightning.scoring.returned_scores import Checked, checked, error_policy
from rlhf_lightning.scoring.scorer import (
    Details,
    Remembers,
    completion_ids,
    completion_texts,
    like_prompt,
    on_last_token,
)
from rlhf_lightning.types import Rollout

RewardFunction = Callable[..., Sequence[float | None] | Sequence[Sequence[float] | None] | Tensor]
Scores = list[float | list[float]]
SHOWN = 200  # characters of a prompt or a completion in an error message
log = logging.getLogger(__name__)


class _Judged(NamedTuple):
    scores: Scores
    tries: int
    failed: list[int]  # samples whose last try brought no score


class FunctionScorer(Remembers):
    """Score decoded answers with a function.

    The function gets ``prompts`` and ``completions`` (texts; for conversational prompts each completion is a list
    with one assistant message, as in TRL) and every other column of the dataset rows as a keyword, each a list of B
    values. If it names an argument ``completion_ids``, it gets the token ids of each answer too, EOS included.

    It returns one number per completion, a sequence of B or a tensor [B]; or one number per token (process rewards),
    B sequences as long as the ``completion_ids`` or a tensor [B, T] padded on the right. None instead of a number or
    a sequence abstains. It may be ``async``, or return a list of what is to be awaited. Anything else is a failure: an
    exception, another number of values, NaN, an infinity, a text.

    Args:
        function: the function, or its import path such as ``my_project.rewards.brevity``.
        name: how the source is called in logs; the function's own name by default.
        abstain_value: the score of an answer the function abstains from; None leaves it unjudged (NaN): nothing is
            learned from it, or, beside other sources, from them only.
        isolate: call the function in a worker process, one per rank, see `IsolatedFunction`. A call there can be ended
            and cannot end the run. Without it breakpoints in the function work, and a call that hangs is never ended.
        timeout: seconds that one call of an isolated function may take.
        retries: how often a call that failed is tried again with the same arguments. With 0 the sample at fault is
            looked for by one call each, which a function that asks a server should be spared.
        on_error: what happens when the last try failed. ``raise`` ends the run; ``abstain`` leaves the answers without
            a score unjudged (NaN), all of them if the call failed as a whole; a number is their score.

    With retries, or an ``on_error`` other than ``raise``, each rollout has the details ``failed_calls`` and
    ``retries`` (counts of this rank) and ``failed_answers`` (1 for an answer that lost its score).

    Raises:
        ConfigError: an argument out of range, a path that leads to no function, or one to isolate without a path.
    """

    def __init__(
        self,
        function: RewardFunction | str,
        name: str | None = None,
        abstain_value: float | None = 0.0,
        isolate: bool = False,
        timeout: float = 60.0,
        retries: int = 0,
        on_error: Literal["raise", "abstain"] | float = "raise",
    ) -> None:
        super().__init__()
        self.function = _import(function) if isinstance(function, str) else function
        self.name = name or getattr(self.function, "__name__", type(self.function).__name__)
        self.abstain_value = math.nan if abstain_value is None else abstain_value
        require("timeout", timeout, above=0, at_most=1e9, why="seconds")
        require("abstain_value", abstain_value, at_least=-3.4e38, at_most=3.4e38)
        require("retries", retries, at_least=0, whole=True)
        self.timeout, self.retries, self.on_error = timeout, retries, error_policy(on_error)
        self._isolated = IsolatedFunction(_path(self.function, function)) if isolate else None
        self._wants_ids = _names(self.function, "completion_ids")

    def to(self, device: torch.device | str) -> FunctionScorer:
        """Nothing to move."""
        return self

    def close(self) -> None:
        """End the worker process, if there is one; the next call starts another. Deleting the scorer does it too."""
        if self._isolated is not None:
            self._isolated.close()

    def score(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Scores, float32 [B], or [B, T] if the function judges tokens.

        Raises:
            RewardFunctionError: the last try failed and ``on_error`` is ``raise``.
            ConfigError: a column of the rows cannot be sent to the worker process.
        """
        prompts = [row["prompt"] for row in rollout.rows]
        texts = completion_texts(rollout, tokenizer)
        judged = self._judge(prompts, texts, rollout.rows, completion_ids(rollout))
        returned, mask = judged.scores, rollout.mask
        if self.retries or self.on_error != "raise":
            self._kept.append((rollout, _details(judged, mask.device)))
        whole = torch.tensor([0.0 if isinstance(v, list) else v for v in returned], device=mask.device)
        if not any(isinstance(v, list) for v in returned):
            return whole
        scores = on_last_token(whole, mask)
        for row, score in enumerate(returned):
            if isinstance(score, list):
                scores[row, rollout.attended[row]] = torch.tensor(score, device=mask.device)
        return torch.where(mask, scores, 0)

    def score_texts(
        self,
        prompts: Sequence[Any],
        texts: Sequence[str],
        rows: Sequence[Any],
        ids: Sequence[Sequence[int]] | None = None,
    ) -> Scores:
        """Call the function on texts and check what comes back: one float per text, or a list of one per token.

        Args:
            prompts: texts or lists of messages.
            texts: the answers.
            rows: the dataset rows the prompts come from.
            ids: token ids of each answer; without them the length of lists is not checked.

        Raises:
            RewardFunctionError, ConfigError: as `score`.
        """
        return self._judge(prompts, texts, rows, ids).scores

    def _judge(
        self, prompts: Sequence[Any], texts: Sequence[str], rows: Sequence[Any], ids: Sequence[Sequence[int]] | None
    ) -> _Judged:
        completions = [like_prompt(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        arguments = {"prompts": list(prompts), "completions": completions, **_columns(rows)}
        if self._wants_ids:
            arguments["completion_ids"] = [list(i) for i in ids or ()]
        lengths = None if ids is None else [len(i) for i in ids]
        for tries in range(1, self.retries + 2):
            found, failure = self._try(arguments, lengths)
            faults = {i: fault for i, fault in enumerate(found) if isinstance(fault, str)}
            if not faults:
                break
            last = tries > self.retries
            if last and self.on_error == "raise":
                self._refuse(arguments, faults, failure, tries)
            then = f"on_error={self.on_error} for {len(faults)} of {len(found)} answers" if last else "trying again"
            log.warning("reward function %s %s; %s", self.name, next(iter(faults.values())), then)
        instead = self.on_error if isinstance(self.on_error, float) else math.nan
        scores: Scores = [instead if isinstance(v, str) else v for v in found]
        return _Judged(scores, tries, list(faults))

    def _try(
        self, arguments: Mapping[str, Any], lengths: Sequence[int] | None, seconds: float | None = None
    ) -> tuple[Checked, CallFailed | None]:
        """What `checked` says of each sample, and the failure if the call failed as a whole."""
        count = len(arguments["prompts"])
        try:
            if self._isolated is not None:
                returned = self._isolated(arguments, seconds or self.timeout)
            else:
                returned = _called(self.function, arguments)
            return checked(returned, count, lengths, self.abstain_value), None
        except CallFailed as failure:
            return [failure.says] * count, failure

    def _refuse(
        self, arguments: Mapping[str, Any], faults: Mapping[int, str], failure: CallFailed | None, tries: int
    ) -> NoReturn:
        count, sample, alone = len(arguments["prompts"]), min(faults), ""
        if failure is not None and self._isolated is not None and count > 1 and not self.retries:
            found = self._culprit(self._isolated, arguments)
            sample, alone = (sample, "") if found is None else (found, ", which fails alone too")
        prompt, completion = (_shortened(arguments[key][sample]) for key in ("prompts", "completions"))
        foreign = "got an unexpected keyword argument" in faults[sample]
        raise RewardFunctionError(
            f"reward function {self.name} {faults[sample]}; sample {sample} of {count}{alone}: "
            f"prompt {prompt}, completion {completion} ({tries} {'try' if tries == 1 else 'tries'}).\n"
            + (
                "It gets every other column of the rows as a keyword; add **columns to its arguments.\n"
                if foreign
                else ""
            )
            + "Correct the function, or set on_error on the scorer: scorer.on_error=abstain learns nothing from such "
            "answers, scorer.on_error=-1.0 gives them that score; scorer.retries=2 tries again first"
            + (", scorer.timeout=600 allows more seconds." if failure is not None and failure.timed_out else ".")
        ) from failure

    def _culprit(self, isolated: IsolatedFunction, arguments: Mapping[str, Any]) -> int | None:
        """The first sample that fails by itself, looked for no longer than one call may take; None if none does."""
        left = self.timeout
        for i in range(len(arguments["prompts"])):
            try:
                isolated.start()
            except CallFailed:
                return None
            begin = time.monotonic()
            _, failure = self._try({name: column[i : i + 1] for name, column in arguments.items()}, None, left)
            if failure is not None:  # out of time is its own fault only if it had a good part of it
                return None if failure.timed_out and left < self.timeout / 2 else i
            left -= time.monotonic() - begin
            if left <= 0:
                return None
        return None


def _called(function: RewardFunction, arguments: Mapping[str, Any]) -> Any:
    try:
        returned = function(**copy.deepcopy(arguments))  # it may change them: they are tried again, and shown
        return plain(settled(returned))
    except bdb.BdbQuit:  # a debugger was left
        raise
    except (Exception, SystemExit) as error:
        raise CallFailed(describe(error)) from error


def _shortened(sample: Any) -> str:
    text = repr(sample)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _details(judged: _Judged, device: torch.device) -> Details:
    lost = torch.zeros(len(judged.scores), device=device)
    lost[judged.failed] = 1.0
    failed_calls = judged.tries if judged.failed else judged.tries - 1
    return {
        "failed_calls": torch.full_like(lost, failed_calls),
        "retries": torch.full_like(lost, judged.tries - 1),
        "failed_answers": lost,
    }


def _columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
    names = {name for row in rows for name in row} - {"prompt", "prompts", "completions", "completion_ids"}
    return {name: [row.get(name) for row in rows] for name in sorted(names)}


def _names(function: Any, argument: str) -> bool:
    try:
        return argument in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False


def _import(path: str) -> RewardFunction:
    try:
        found = load(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"reward function {path!r} cannot be imported ({error}); give its import path, "
            "for example my_project.rewards.brevity"
        ) from error
    if not callable(found):
        raise ConfigError(f"{path!r} is a {type(found).__name__}, not a function")
    return found


def _path(function: RewardFunction, given: Any) -> str:
    """Where a worker finds the function."""
    if isinstance(given, str):
        return given
    path = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    try:
        found = load(path) if not path.startswith("__main__.") else None
    except (ImportError, AttributeError, ValueError):
        found = None
    if found is not function:
        raise ConfigError(
            f"isolate=true: a worker process cannot import {function!r}; put the function at the top level of a module "
            "and give its import path, or set isolate=false: a call that hangs is then never ended"
        )
    return path
