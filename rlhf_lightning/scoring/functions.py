"""Python functions as scorers, with the signature TRL users know: ``f(prompts, completions, **columns)``."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError, RewardFunctionError
from rlhf_lightning.scoring.scorer import completion_ids, completion_texts, on_last_token
from rlhf_lightning.types import Rollout

RewardFunction = Callable[..., Sequence[float | None] | Sequence[Sequence[float] | None] | Tensor]
Verdicts = list[float | list[float]]


class FunctionScorer:
    """Score decoded answers with a function.

    The function gets ``prompts`` and ``completions`` (texts; for conversational prompts each completion is a list
    with one assistant message, as in TRL) and every other column of the dataset rows as a keyword, each a list of B
    values. If it names an argument ``completion_ids``, it gets the token ids of each answer too, EOS included.

    It returns one number per completion, a sequence of B or a tensor [B]; or one number per token (process rewards),
    B sequences as long as the ``completion_ids`` or a tensor [B, T] padded on the right. None instead of a number or
    a sequence abstains.

    Args:
        function: the function, or its import path such as ``my_project.rewards.brevity``.
        name: how the source is called in logs; the function's own name by default.
        abstain_value: the score of an answer the function abstains from; None leaves it unjudged (NaN): nothing is
            learned from it, or, beside other sources, from them only.
    """

    def __init__(
        self, function: RewardFunction | str, name: str | None = None, abstain_value: float | None = 0.0
    ) -> None:
        self.function = _import(function) if isinstance(function, str) else function
        self.name = name or getattr(self.function, "__name__", type(self.function).__name__)
        self.abstain_value = math.nan if abstain_value is None else abstain_value
        self._wants_ids = _names(self.function, "completion_ids")

    def to(self, device: torch.device | str) -> FunctionScorer:
        """Nothing to move."""
        return self

    def score(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Scores, float32 [B], or [B, T] if the function judges tokens.

        Raises:
            RewardFunctionError: the function raised, returned another number of values, or something that is no
                finite number.
        """
        prompts = [row["prompt"] for row in rollout.rows]
        texts = completion_texts(rollout, tokenizer)
        verdicts = self.verdicts(prompts, texts, rollout.rows, completion_ids(rollout))
        mask = rollout.mask
        whole = torch.tensor([0.0 if isinstance(v, list) else v for v in verdicts], device=mask.device)
        if not any(isinstance(v, list) for v in verdicts):
            return whole
        scores = on_last_token(whole, mask)
        for row, verdict in enumerate(verdicts):
            if isinstance(verdict, list):
                scores[row, mask[row]] = torch.tensor(verdict, device=mask.device)
        return scores

    def verdicts(
        self,
        prompts: Sequence[Any],
        texts: Sequence[str],
        rows: Sequence[Any],
        ids: Sequence[Sequence[int]] | None = None,
    ) -> Verdicts:
        """Call the function on texts and check what comes back: one finite float per text, or a list of one per token.

        Args:
            prompts: texts or lists of messages.
            texts: the answers.
            rows: the dataset rows the prompts come from.
            ids: token ids of each answer; without them the length of lists is not checked.
        """
        completions = [
            t if isinstance(p, str) else [{"role": "assistant", "content": t}]
            for p, t in zip(prompts, texts, strict=True)
        ]
        columns = _columns(rows) | ({"completion_ids": [list(i) for i in ids or ()]} if self._wants_ids else {})
        try:
            verdicts = self.function(prompts=list(prompts), completions=completions, **columns)
        except Exception as error:
            raise RewardFunctionError(
                f"reward function {self.name} raised {type(error).__name__}: {error}; first completion was {texts[0]!r}"
            ) from error
        if verdicts is None or len(verdicts) != len(texts):
            count = "None" if verdicts is None else f"{len(verdicts)} values"
            raise RewardFunctionError(
                f"reward function {self.name} returned {count} for {len(texts)} completions; one number each is needed"
            )
        given: list[Any] = verdicts.tolist() if isinstance(verdicts, Tensor) else list(verdicts)
        width = max((len(i) for i in ids), default=0) if ids is not None else None
        return [
            self._per_token(v, text, None if ids is None else len(ids[i]), width)
            if isinstance(v, (list, tuple)) or (isinstance(v, Tensor) and v.dim() == 1)
            else self._number(v, text)
            for i, (v, text) in enumerate(zip(given, texts, strict=True))
        ]

    def _per_token(self, verdict: Any, text: str, length: int | None, width: int | None) -> list[float]:
        if length is not None and len(verdict) not in (length, width):
            raise RewardFunctionError(
                f"reward function {self.name} returned {len(verdict)} numbers for the {length} tokens of {text!r}; "
                "give one per id of completion_ids, or one for the whole answer"
            )
        return [self._number(v, text, may_abstain=False) for v in list(verdict)[:length]]

    def _number(self, verdict: Any, text: str, may_abstain: bool = True) -> float:
        if verdict is None and may_abstain:
            return self.abstain_value
        try:
            number = float(verdict)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise RewardFunctionError(
                f"reward function {self.name} returned {verdict!r} for {text!r}; a finite number or None is needed"
            )
        return number


def _columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
    names = {name for row in rows for name in row} - {"prompt", "prompts", "completions", "completion_ids"}
    return {name: [row.get(name) for row in rows] for name in sorted(names)}


def _names(function: Any, argument: str) -> bool:
    try:
        return argument in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False


def _import(path: str) -> RewardFunction:
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"reward function {path!r} cannot be imported ({error}); give its import path, "
            "for example my_project.rewards.brevity"
        ) from error
    if not callable(found):
        raise ConfigError(f"{path!r} is a {type(found).__name__}, not a function")
    return found
