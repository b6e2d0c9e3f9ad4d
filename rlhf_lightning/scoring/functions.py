"""Python functions as scorers, with the signature TRL users know: ``f(prompts, completions, **columns)``."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError, RewardFunctionError
from rlhf_lightning.scoring.scorer import completion_texts
from rlhf_lightning.types import Rollout

RewardFunction = Callable[..., Sequence[float | None]]


class FunctionScorer:
    """Score decoded answers with a function.

    The function gets ``prompts`` and ``completions`` (texts; for conversational prompts each completion is a list
    with one assistant message, as in TRL) and every other column of the dataset rows as a keyword, each a list of B
    values. It returns one number per completion, or None to abstain.

    Args:
        function: the function, or its import path such as ``my_project.rewards.brevity``.
        name: how the source is called in logs; the function's own name by default.
        abstain_value: the score of an answer the function abstains from.
    """

    def __init__(self, function: RewardFunction | str, name: str | None = None, abstain_value: float = 0.0) -> None:
        self.function = _import(function) if isinstance(function, str) else function
        self.name = name or getattr(self.function, "__name__", type(self.function).__name__)
        self.abstain_value = abstain_value

    def to(self, device: torch.device | str) -> FunctionScorer:
        """Nothing to move."""
        return self

    def score(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Scores, float32 [B].

        Raises:
            RewardFunctionError: the function raised, returned another number of values, or something that is no
                finite number.
        """
        prompts = [row["prompt"] for row in rollout.rows]
        texts = completion_texts(rollout, tokenizer)
        verdicts = self.verdicts(prompts, texts, rollout.rows)
        return torch.tensor(verdicts, dtype=torch.float32, device=rollout.response_ids.device)

    def verdicts(self, prompts: Sequence[Any], texts: Sequence[str], rows: Sequence[Any]) -> list[float]:
        """Call the function on texts and check what comes back, one finite float per text."""
        completions = [
            t if isinstance(p, str) else [{"role": "assistant", "content": t}]
            for p, t in zip(prompts, texts, strict=True)
        ]
        try:
            verdicts = self.function(prompts=list(prompts), completions=completions, **_columns(rows))
        except Exception as error:
            raise RewardFunctionError(
                f"reward function {self.name} raised {type(error).__name__}: {error}; first completion was {texts[0]!r}"
            ) from error
        if verdicts is None or len(verdicts) != len(texts):
            count = "None" if verdicts is None else f"{len(verdicts)} values"
            raise RewardFunctionError(
                f"reward function {self.name} returned {count} for {len(texts)} completions; one number each is needed"
            )
        return [self._number(v, text) for v, text in zip(verdicts, texts, strict=True)]

    def _number(self, verdict: Any, text: str) -> float:
        if verdict is None:
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
    names = {name for row in rows for name in row} - {"prompt", "prompts", "completions"}
    return {name: [row.get(name) for row in rows] for name in sorted(names)}


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
