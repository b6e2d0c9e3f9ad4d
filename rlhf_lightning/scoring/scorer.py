"""The contract of everything that judges an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, Self

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.checkpoint.sharded import weights_mesh
from rlhf_lightning.errors import ConfigError, NumericalError
from rlhf_lightning.functional.sequences import last_index
from rlhf_lightning.models.tokens import decode
from rlhf_lightning.private_api.lightning import strategy_of
from rlhf_lightning.rules.combinations import NO_SCORER
from rlhf_lightning.training.precision import sharded_dtype
from rlhf_lightning.types import Rollout

Details = dict[str, Tensor]
"""Numbers about each response, float [B] by name; the same names on every rank. NaN where there is none."""


class Scorer(Protocol):
    """Gives each response one number, or one per token. Higher is better.

    Four things may be added. ``learned = True`` says that the scores are a model's guess, which can be exploited.
    ``details_of(rollout)``, or an attribute ``details`` about the last call, gives `Details`
    that training logs as ``rewards/<name>/mean`` and ``/std``. ``state_dict()`` and ``load_state_dict(state)`` are for
    what must survive a resume, in plain data and equal on all ranks. ``shard(mesh, compute)`` shares weights among the
    ranks of a run that shards its own, see `rlhf_lightning.models.sharding.shard`; all ranks then score together.
    """

    name: str

    def score(self, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Scores, float32 [B] or [B, T] on the rollout's device, NaN to abstain; ``tokenizer`` is the policy's."""

    def to(self, device: torch.device | str) -> Any:
        """Move what the scorer holds."""


def as_scorer(judge: Scorer | None) -> Scorer:
    """The judge of the run in the place of its scorer.

    Raises:
        ConfigError: there is no judge.
    """
    if not judge:
        raise ConfigError(NO_SCORER)
    return judge


def place(scorer: Scorer, module: pl.LightningModule) -> None:
    """Have a scorer where a module computes, its weights sharded where those of the module are. Collective."""
    mesh = weights_mesh(strategy_of(module))
    if mesh is not None and hasattr(scorer, "shard"):
        scorer.shard(mesh, sharded_dtype(strategy_of(module)))
    scorer.to(module.device)


class Faults:
    """Errors of the parts of a scorer, raised when all of them have scored.

    Parts may meet other ranks, which have no error, and wait for this one. A part that raised abstains until then.
    """

    def __init__(self) -> None:
        self._first: NumericalError | None = None

    def score(self, scorer: Scorer, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """What the scorer gives, float32 [B] or [B, T]; NaN [B] where it raised `NumericalError`."""
        try:
            return scorer.score(rollout, tokenizer).float()
        except NumericalError as error:
            self._first = self._first or error
            return torch.full((len(rollout),), torch.nan, device=rollout.response_ids.device)

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self._first is not None:
            raise self._first


class Remembers:
    """Details of the last two rollouts: with a greedy baseline the rollout that counts is not the last one scored."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Rollout, Details]] = deque(maxlen=2)

    def details_of(self, rollout: Rollout) -> Details:
        """`details` of one of the last two rollouts, this very object; empty for any other."""
        return next((details for kept, details in reversed(self._kept) if kept is rollout), {})

    @property
    def details(self) -> Details:
        """See the class."""
        return self._kept[-1][1] if self._kept else {}


class Composite(Remembers):
    """A scorer made of others, whose state it keeps."""

    def parts(self) -> Iterable[tuple[str, Any]]:
        """Scorers and transforms, by the place under which their state is saved."""
        raise NotImplementedError

    @property
    def learned(self) -> bool:
        """Whether any part is, see `Scorer`."""
        return any(getattr(part, "learned", False) for _, part in self.parts())

    def to(self, device: torch.device | str) -> Self:
        """Move the parts."""
        for _, part in self.parts():
            if hasattr(part, "to"):
                part.to(device)
        return self

    def shard(self, mesh: DeviceMesh, compute: torch.dtype | None) -> None:
        """Share the weights of the parts that can among ranks."""
        for _, part in self.parts():
            if hasattr(part, "shard"):
                part.shard(mesh, compute)

    def state_dict(self) -> dict[str, Any]:
        """State of the parts that have one to keep, by place; networks are saved by the module that holds them."""
        return {place: part.state_dict() for place, part in self._stateful()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what was saved of the parts that are still there."""
        for place, part in self._stateful():
            if place in state:
                part.load_state_dict(state[place])

    def _stateful(self) -> Iterator[tuple[str, Any]]:
        return (
            (place, part)
            for place, part in self.parts()
            if hasattr(part, "state_dict") and not isinstance(part, nn.Module)
        )


def state_of(scorer: Any) -> dict[str, Any]:
    """What a scorer wants to keep; a network among the children of a module is saved with them."""
    return scorer.state_dict() if hasattr(scorer, "state_dict") and not isinstance(scorer, nn.Module) else {}


def details_of(scorer: Any, rollout: Rollout) -> Details:
    """What a scorer can tell about a rollout it has scored; empty where it tells nothing."""
    if hasattr(scorer, "details_of"):
        return scorer.details_of(rollout)
    details: Details = getattr(scorer, "details", None) or {}
    return {name: column for name, column in details.items() if column.shape == (len(rollout),)}


def on_last_token(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores [B] at the last token that counts, scores [B, T] as they are; 0 elsewhere, [B, T].

    >>> on_last_token(torch.tensor([5.0]), torch.tensor([[True, True, False]]))
    tensor([[0., 5., 0.]])
    """
    if scores.dim() == 2:
        return torch.where(mask, scores, 0)
    wide = scores.new_zeros(mask.shape)
    return torch.where(mask, wide.scatter(1, last_index(mask).unsqueeze(1), scores.unsqueeze(1)), 0)


def completion_texts(rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The responses as text without special tokens, B strings; what an environment wrote in them included."""
    return decode(tokenizer, completion_ids(rollout))


def like_prompt(prompt: Any, answer: str) -> str | list[dict[str, str]]:
    """The answer as text where the prompt is text, as a message where it is messages.

    >>> like_prompt("Q", "A"), like_prompt([{"role": "user", "content": "Q"}], "A")
    ('A', [{'role': 'assistant', 'content': 'A'}])
    """
    return answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]


def completion_ids(rollout: Rollout) -> list[list[int]]:
    """All token ids of each response, EOS included."""
    return [row[there].tolist() for row, there in zip(rollout.response_ids, rollout.attended, strict=True)]
