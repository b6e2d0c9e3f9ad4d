"""The data that flows through training. Frozen dataclasses of tensors, never text on the learning path.

Shapes: ``B`` sequences, ``P`` prompt tokens, ``T`` response tokens, ``S = P + T``, ``V`` vocabulary, ``N`` ranked
answers of a batch. Masks are boolean and True where a token counts. Prompts are padded on the left, responses on the
right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

Row = Mapping[str, Any]
"""One dataset row as the user wrote it; unknown columns are kept and reach the reward functions."""


class TensorData:
    """Mixin for dataclasses of tensors: move and slice every tensor field at once."""

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """The same data on ``device``. Fields that are not tensors stay as they are."""
        moved = {f.name: _to(getattr(self, f.name), device, **kwargs) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]

    def select(self, index: Tensor) -> Self:
        """Rows ``index`` (long ``[n]``) of every ``[B, ...]`` field."""
        return replace(self, **{f.name: _select(getattr(self, f.name), index) for f in fields(self)})  # type: ignore


def _first(mask: Tensor) -> int:
    """Leading columns that no row needs, at least one column kept."""
    used = mask.any(0).nonzero()
    return int(used[0]) if len(used) else mask.shape[1] - 1


def _last(mask: Tensor) -> int:
    """Columns up to the last that a row needs, at least one."""
    return mask.shape[1] - _first(mask.flip(1))


def _to(value: Any, device: torch.device | str, **kwargs: Any) -> Any:
    return value.to(device, **kwargs) if isinstance(value, (Tensor, TensorData)) else value


def _select(value: Any, index: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, TensorData):
        return value.select(index)
    if isinstance(value, tuple):
        return tuple(value[i] for i in index.tolist())
    return value


@dataclass(frozen=True)
class SFTBatch(TensorData):
    """Demonstrations with teacher forcing, padded on the right."""

    input_ids: Tensor  # long [B, S]
    attention_mask: Tensor  # bool [B, S], True at real tokens
    mask: Tensor  # bool [B, S], True at tokens that are to be predicted (completion and EOS)
    denominator: float  # see `ShardedLoader`: sum of token losses / denominator averages to the global token mean


@dataclass(frozen=True)
class ComparisonBatch(TensorData):
    """K ranked answers for each prompt, flattened to ``N`` sequences; a prompt is never split over batches."""

    input_ids: Tensor  # long [N, S], prompt + answer, padded on the right
    attention_mask: Tensor  # bool [N, S]
    prompt_index: Tensor  # long [N], which prompt of this batch an answer belongs to, 0 .. num_prompts - 1
    ranks: Tensor  # long [N], 1 is best, equal ranks are ties
    lengths: Tensor  # long [N], tokens of the answer, EOS included
    margins: Tensor  # float [N], margin of the row the answer belongs to (0 where the row has none)
    num_prompts: int
    denominator: float  # number of prompts of the global batch, in the convention of `SFTBatch.denominator`
    subsets: tuple[str, ...] = ()  # N, the part of the data that each answer's row names, ""; empty if none is named
    written: Tensor | None = None  # bool [N, S], see `AnswerBatch.written`

    @property
    def counted(self) -> Tensor:
        """Tokens of each answer that the model is to write, long ``[N]``."""
        return self.lengths if self.written is None else self.written.sum(1)


@dataclass(frozen=True)
class PromptBatch(TensorData):
    """Prompts to answer, padded on the left."""

    input_ids: Tensor  # long [B, P]
    attention_mask: Tensor  # bool [B, P]
    rows: tuple[Row, ...]  # B rows as in the file; `row["prompt"]` is text or a list of messages

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def repeat_interleave(self, repeats: int) -> PromptBatch:
        """Each prompt ``repeats`` times in a row, so that the answers to one prompt stay together."""
        return self.select(torch.arange(len(self)).repeat_interleave(repeats))


@dataclass(frozen=True)
class Rollout(TensorData):
    """What sampling returned. A turn ends at its first EOS inclusive; no mask ever looks at the pad id.

    Text in a response that the policy did not write (``context``: what an environment answered) is attended to and
    shown to scorers, and nothing is learned from it.
    """

    prompt_ids: Tensor  # long [B, P], padded on the left
    prompt_mask: Tensor  # bool [B, P]
    response_ids: Tensor  # long [B, T], padded on the right
    mask: Tensor  # bool [B, T], True at response tokens that the policy wrote: those that are learned from
    finished: Tensor  # bool [B], True where the answer ended by itself (EOS or stop), False where it was truncated
    rollout_logprobs: Tensor | None  # float [B, T], as the engine computed them while sampling
    weight_version: Tensor  # long [B], optimizer steps of the policy that sampled the row
    rows: tuple[Row, ...]  # B dataset rows
    context: Tensor | None = None  # bool [B, T], True at response tokens that others wrote; None: there are none
    asked: PromptBatch | None = None  # B prompts before an environment added to them; None: nothing was added

    def __len__(self) -> int:
        return self.response_ids.shape[0]

    @property
    def attended(self) -> Tensor:
        """True at all tokens of the response, whoever wrote them, bool ``[B, T]``."""
        return self.mask if self.context is None else self.mask | self.context

    @property
    def input_ids(self) -> Tensor:
        """Prompt and response, long ``[B, S]``."""
        return torch.cat([self.prompt_ids, self.response_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """True at the tokens of prompt and response, bool ``[B, S]``."""
        return torch.cat([self.prompt_mask, self.attended], dim=1)

    @property
    def sampled(self) -> Tensor:
        """True at the tokens that the policy wrote, bool ``[B, S]``."""
        return torch.cat([torch.zeros_like(self.prompt_mask), self.mask], dim=1)

    @property
    def lengths(self) -> Tensor:
        """Tokens that the policy wrote in each row, EOS included, long ``[B]``."""
        return self.mask.sum(1)

    @property
    def padding(self) -> tuple[int, int]:
        """Columns that are padding in every row: on the left of the prompts, on the right of the responses."""
        return _first(self.prompt_mask), self.mask.shape[1] - _last(self.attended)

    def trimmed(self) -> Rollout:
        """The same rows without the columns that are `padding` in all of them."""
        left, right = self.padding
        width = self.mask.shape[1] - right
        return replace(
            self,
            prompt_ids=self.prompt_ids[:, left:],
            prompt_mask=self.prompt_mask[:, left:],
            response_ids=self.response_ids[:, :width],
            mask=self.mask[:, :width],
            rollout_logprobs=None if self.rollout_logprobs is None else self.rollout_logprobs[:, :width],
            context=None if self.context is None else self.context[:, :width],
        )


@dataclass(frozen=True)
class Experience(TensorData):
    """A rollout with all that learning needs. Every tensor is detached; nothing here is ever saved."""

    rollout: Rollout
    scores: Tensor  # float [B], of the scorer
    logprobs: Tensor  # float [B, T], under the policy that sampled, recomputed by the training forward
    ref_logprobs: Tensor  # float [B, T]
    values: Tensor  # float [B, T], 0 without a critic
    rewards: Tensor  # float [B, T], score minus the KL penalty, per token
    advantages: Tensor  # float [B, T]
    returns: Tensor  # float [B, T]
    hidden: Tensor | None = None  # float [B, S, D], output of the frozen lower layers, if there are any
    weights: Tensor | None = None  # float [B, T] or [B, 1], rollout correction of the policy loss
    counted: Tensor | None = None  # bool [B], responses to learn from; None means all

    @property
    def mask(self) -> Tensor:
        """True at tokens to learn from, bool ``[B, T]``."""
        return self.rollout.mask if self.counted is None else self.rollout.mask & self.counted[:, None]

    def trimmed(self) -> Experience:
        """The same rows without the columns that are padding in all of them, see `Rollout.trimmed`."""
        left, right = self.rollout.padding
        width = self.rollout.mask.shape[1] - right
        per_token = ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
        return replace(
            self,
            rollout=self.rollout.trimmed(),
            hidden=None if self.hidden is None else self.hidden[:, left : self.hidden.shape[1] - right],
            weights=None if self.weights is None else self.weights[:, :width],
            **{name: getattr(self, name)[:, :width] for name in per_token},
        )


class Forward(NamedTuple):
    """What the policy and critic in training say about each response token."""

    logprobs: Tensor  # [B, T], 0 behind the response
    values: Tensor  # [B, T], 0 without a critic
    entropy: Tensor | None  # [B, T], nats; None if not asked for, carries a gradient only if there is a bonus for it


@dataclass(frozen=True)
class AnswerBatch(TensorData):
    """Prompts with one answer each, padded on the right."""

    input_ids: Tensor  # long [B, S], prompt + answer
    attention_mask: Tensor  # bool [B, S]
    lengths: Tensor  # long [B], tokens of the answer, EOS included: the last real tokens of the row; 0 counts nothing
    written: Tensor | None = field(default=None, kw_only=True)
    """bool [B, S], True at the tokens of answers that the model is to write, and not a user between; None: all."""

    def trimmed(self) -> Self:
        """The same rows without the columns on the right that are padding in all of them."""
        width = _last(self.attention_mask)
        written = None if self.written is None else self.written[:, :width]
        ids, mask = self.input_ids[:, :width], self.attention_mask[:, :width]
        return replace(self, input_ids=ids, attention_mask=mask, written=written)


@dataclass(frozen=True)
class FeedbackBatch(AnswerBatch):
    """Single answers labelled good or bad."""

    desirable: Tensor  # bool [B], True where the answer was called good
    mismatched: (
        AnswerBatch | None
    )  # with the first micro-batch of a step: all prompts of this rank with strange answers
    denominator: float  # number of answers of the global batch, in the convention of `SFTBatch.denominator`
