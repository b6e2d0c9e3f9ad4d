"""The contract between training and whatever samples: `Sampling` says how, a `RolloutEngine` does it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.forward import contiguous_head
from rlhf_lightning.models.sharding import gathered
from rlhf_lightning.rules import combinations
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import PromptBatch, Rollout


def stream_seed(*numbers: int) -> int:
    """A seed for each sequence of numbers, such as seed, rank and call. Added up, those of different runs would meet.

    >>> stream_seed(0, 1) == stream_seed(1, 0), stream_seed(0, 1) == stream_seed(0, 1)
    (False, True)
    """
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big")


def rank_seed(seed: int, rank: int) -> int:
    """A stream of its own for every rank; that of the first is the seed's."""
    return stream_seed(seed, rank) if rank else seed


@dataclass(frozen=True)
class Sampling:
    """The distribution answers are drawn from.

    Args:
        max_new_tokens: an answer that has not ended by then is truncated.
        temperature: divides the logits, here and wherever training scores tokens.
        top_k: keep only the k likeliest tokens; 0 keeps all. Not for training, see `require_scorable`.
        top_p: keep the smallest set of tokens with this probability; 1 keeps all. Not for training.
        min_new_tokens: forbid EOS before this many tokens. Not for training.
        stop: an answer ends as soon as its text contains one of these strings; the token that completes it is kept. Fit
            for training: each token is still drawn from the whole distribution.

    Raises:
        ConfigError: a value out of range, or ``stop`` is not a list of texts.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"sampling.stop={self.stop!r}: give a list of texts, for example ['###']")
        object.__setattr__(self, "stop", tuple(self.stop))  # a config gives a list
        require("sampling.max_new_tokens", self.max_new_tokens, at_least=1, whole=True)
        require(
            "sampling.temperature", self.temperature, above=0, at_most=1e9, why="answers are sampled, not searched for"
        )
        require("sampling.top_k", self.top_k, at_least=0, whole=True)
        require("sampling.top_p", self.top_p, above=0, at_most=1)
        require("sampling.min_new_tokens", self.min_new_tokens, at_least=0, whole=True)

    def require_scorable(self) -> None:
        """Refuse what training cannot score.

        Log-probabilities are computed from the whole tempered distribution. Tokens drawn from a truncated one would
        get a wrong ratio and a negative KL: a bonus for leaving the reference.

        Raises:
            ConfigError: top_k, top_p or min_new_tokens is active.
        """
        combinations.check_sampling(self.top_k, self.top_p, self.min_new_tokens)


class Agreement(NamedTuple):
    """How far the log-probabilities of an engine may be from those of the training forward on the same tokens."""

    every_n: int  # rollouts between two looks; the first of a process is looked at
    warn_at: float  # nats per token on average, above which a warning says so
    stop_at: float  # above which the run ends


class RolloutEngine(Protocol):
    """Anything that answers prompts with the current weights of a policy.

    It may also have ``is_exact`` (whether it computes with the very weights of training), ``holds_policy`` (False where
    it does not decode with all weights of the policy, which are then not gathered for it), ``agreement`` (an
    `Agreement`), ``close()``, called when nothing more is sampled, and ``samples_ahead``: True where ``generate`` may
    run in a thread while the policy learns. It then draws from no global random stream, talks to no other rank, calls
    `rlhf_lightning.signals.poll` often, and keeps to the weights of the last ``sync``; one with ``is_exact`` is given a
    copy of them.
    """

    def sync(self, policy: PreTrainedModel, eos_token_ids: Sequence[int], pad_token_id: int, version: int) -> None:
        """Use these weights from now on; ``version`` is stamped on every row."""

    def generate(
        self, prompts: PromptBatch, sampling: Sampling, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Rollout:
        """One answer per prompt row. Only stop strings need the tokenizer."""

    def seed(self, seed: int) -> None:
        """Start the private random stream from scratch; every rank gets a seed of its own."""

    def state_dict(self) -> dict[str, Any]:
        """Plain state that makes the next rollout after a resume the same."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""


class CallSeeds:
    """The random stream of an engine that is seeded for each call: by its seed and how many calls came before."""

    _seed = _calls = 0

    def seed(self, seed: int) -> None:
        """Start from the first call of this stream again."""
        self._seed, self._calls = seed, 0

    def state_dict(self) -> dict[str, Any]:
        """Seed and number of calls."""
        return {"seed": self._seed, "calls": self._calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._seed, self._calls = state["seed"], state["calls"]

    def call_seed(self, *numbers: int) -> int:
        """The seed of this call, or of a part of it with these numbers."""
        return stream_seed(self._seed, self._calls, *numbers)


@contextmanager
def decoding(policy: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, autocast off (it would cast all weights again for every token); restored on exit."""
    was_training = policy.training
    policy.eval()
    try:
        device = next(policy.parameters()).device.type
        with torch.no_grad(), torch.autocast(device, enabled=False), contiguous_head(policy):
            yield
    finally:
        policy.train(was_training)


@contextmanager
def weights_for(engine: RolloutEngine, policy: nn.Module) -> Iterator[None]:
    """The full weights on every rank, where the engine decodes with them."""
    with gathered(policy) if getattr(engine, "holds_policy", True) else nullcontext():
        yield


def close(engine: RolloutEngine) -> None:
    """Let go what an engine holds, if it holds anything."""
    getattr(engine, "close", lambda: None)()


def check_context(policy: PreTrainedModel, prompt_length: int, sampling: Sampling) -> None:
    """Raises: ConfigError: the longest prompt and answer together do not fit the model's positions."""
    limit = getattr(policy.config, "max_position_embeddings", None)
    if limit is not None:
        combinations.check_context(prompt_length, sampling.max_new_tokens, limit)


def check_prompts(policy: Any, data: Any, sampling: Sampling) -> None:
    """Raises: ConfigError: the longest training prompt of a `PromptData` and its answer do not fit; others pass."""
    longest = max((len(prompt.ids) for prompt in getattr(data, "train_items", [])), default=0)
    check_context(policy, longest, sampling)
