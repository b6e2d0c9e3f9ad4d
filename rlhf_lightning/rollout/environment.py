"""Answers in several turns: what the policy writes is given to an environment, and what that says back is attended to
and never learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError, RewardFunctionError
from rlhf_lightning.functional.sequences import left_pad, right_pad
from rlhf_lightning.models.templates import render
from rlhf_lightning.models.tokens import decode, encode
from rlhf_lightning.rollout.engine import Agreement, RolloutEngine, Sampling, close
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.rules.rows import template_arguments
from rlhf_lightning.types import PromptBatch, Rollout, Row

ANSWER = "\ue000"  # stands for the answer in a rendered conversation; no text uses this character


class Environment(Protocol):
    """What answers one response: a game, a tool, a user. It may also have ``reward() -> float``, asked at the end."""

    def reset(self, **row: Any) -> str | None:
        """Begin with a dataset row; text to add to its prompt (to the last message of a conversation), or None."""

    def step(self, answer: str) -> str | None:
        """The text that follows a turn of the policy (in a conversation the user's message); None ends the response."""


@dataclass
class _Episode:
    """One response while it is written."""

    environment: Environment
    row: Row
    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)  # True at tokens of the policy
    finished: bool = False

    def append(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Add tokens of the environment; of the policy, if they have log-probabilities."""
        self.ids += ids
        self.logprobs += [0.0] * len(ids) if logprobs is None else logprobs
        self.written += [logprobs is not None] * len(ids)

    @contextmanager
    def naming(self, method: str) -> Iterator[None]:
        """Raises: RewardFunctionError: the environment raised; names ``method`` and the prompt."""
        try:
            yield
        except Exception as error:
            raise RewardFunctionError(
                f"environment {type(self.environment).__name__}.{method} raised {type(error).__name__}: {error}; "
                f"prompt {str(self.row['prompt'])[:200]!r}, {sum(self.written)} tokens of the policy so far"
            ) from error


class EnvironmentEngine:
    """Sample a turn of all responses, ask each one's environment, append its text, and sample again.

    A response is ``finished`` where the environment ended it and its last turn was not truncated. Where the environment
    would say more after the last turn, or where its text and another turn no longer fit, the response is truncated.
    An environment's ``reward()`` stands in ``rollout.rows`` as ``environment_reward``.

    Args:
        engine: samples the turns; a turn has at most ``sampling.max_new_tokens``.
        environment: makes the environment of one response, called without arguments. Let it depend on the row alone,
            so that answers of one group are given the same task.
        max_turns: turns of the policy in a response.
        max_tokens: of a response, both sides' tokens counted; None leaves it to the model's positions.

    Raises:
        ConfigError: an argument is below 1, or the engine decodes in step with other ranks.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        environment: Callable[[], Environment],
        max_turns: int = 4,
        max_tokens: int | None = None,
    ) -> None:
        if getattr(engine, "in_step", False):
            raise ConfigError(
                "rollout.engine.gather=layer: ranks would wait for each other, since episodes have other numbers of "
                "turns on other ranks; set rollout.engine.gather=model"
            )
        require("rollout.max_turns", max_turns, at_least=1, whole=True)
        require("rollout.max_tokens", max_tokens, at_least=1, whole=True)
        self.engine, self.environment = engine, environment
        self.max_turns, self.max_tokens = max_turns, max_tokens
        self._positions: int | None = None
        self._pad = 0

    @property
    def is_exact(self) -> bool:
        """Whether the engine's log-probabilities of the policy's tokens are those of training."""
        return getattr(self.engine, "is_exact", False)

    @property
    def holds_policy(self) -> bool:
        """Whether the engine decodes with all weights of the policy."""
        return getattr(self.engine, "holds_policy", True)

    @property
    def agreement(self) -> Agreement | None:
        """How far the engine's log-probabilities may be from those of training."""
        return getattr(self.engine, "agreement", None)

    def close(self) -> None:
        """Close the engine."""
        close(self.engine)

    def sync(self, policy: PreTrainedModel, eos_token_ids: Sequence[int], pad_token_id: int, version: int) -> None:
        """See `RolloutEngine`."""
        self._pad, self._positions = pad_token_id, getattr(policy.config, "max_position_embeddings", None)
        self.engine.sync(policy, eos_token_ids, pad_token_id, version)

    def seed(self, seed: int) -> None:
        """Seed the engine; environments have random numbers of their own."""
        self.engine.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """State of the engine: no environment outlives a call of `generate`."""
        return self.engine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the engine."""
        self.engine.load_state_dict(state)

    def generate(
        self, prompts: PromptBatch, sampling: Sampling, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Rollout:
        """One response per prompt row.

        Raises:
            ConfigError: no tokenizer, no room for a turn, or what the engine raises.
            RewardFunctionError: an environment raised.
        """
        if tokenizer is None:
            raise ConfigError("EnvironmentEngine.generate(prompts, sampling, tokenizer): environments read text")
        if self.max_tokens is not None and self.max_tokens < sampling.max_new_tokens:
            raise ConfigError(
                f"rollout.max_tokens={self.max_tokens}: one turn may have sampling.max_new_tokens="
                f"{sampling.max_new_tokens}; give more, or null"
            )
        versions: Tensor | None = None
        episodes = [
            self._begin(row, ids[real].tolist(), tokenizer)
            for row, ids, real in zip(prompts.rows, prompts.input_ids, prompts.attention_mask, strict=True)
        ]
        running, kept = episodes, True
        for turn in range(1, self.max_turns + 1):
            rollout = self.engine.generate(self._prompts(running, prompts), sampling, tokenizer)
            kept = kept and rollout.rollout_logprobs is not None
            versions = rollout.weight_version if versions is None else versions
            answered, running = running, []
            for episode, (ids, logprobs, ended) in zip(answered, _turns(rollout), strict=True):
                episode.append(ids, logprobs)
                answer = decode(tokenizer, [ids])[0]
                with episode.naming("step"):
                    text = episode.environment.step(answer)
                episode.finished = ended and text is None
                if text is None or turn == self.max_turns:
                    continue
                given = template_arguments(episode.row)
                more = following(tokenizer, episode.row["prompt"], text, ids[-1], given)
                if self._fits(episode, len(more) + sampling.max_new_tokens):
                    episode.append(more)
                    running.append(episode)
            if not running:
                break
        assert versions is not None
        return self._rollout(episodes, prompts, versions, kept)

    def _begin(self, row: Row, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> _Episode:
        episode = _Episode(self.environment(), row, ids)
        with episode.naming("reset"):
            added = episode.environment.reset(**row)
        if added is None:
            return episode
        prompt = row["prompt"]
        if isinstance(prompt, str):
            prompt, ids = prompt + added, ids + encode(tokenizer, [added])[0]
        else:
            prompt = [*prompt[:-1], prompt[-1] | {"content": prompt[-1]["content"] + added}]
            text = render(tokenizer, prompt, generation_prompt=True, given=template_arguments(row))
            ids = encode(tokenizer, [text])[0]
        return replace(episode, row={**row, "prompt": prompt}, prompt=ids)

    def _fits(self, episode: _Episode, more: int) -> bool:
        """Whether a response may have ``more`` tokens."""
        length = len(episode.ids) + more
        fits = self.max_tokens is None or length <= self.max_tokens
        return fits and (self._positions is None or len(episode.prompt) + length <= self._positions)

    def _prompts(self, episodes: Sequence[_Episode], prompts: PromptBatch) -> PromptBatch:
        ids, mask = left_pad([episode.prompt + episode.ids for episode in episodes], self._pad)
        return PromptBatch(ids, mask, tuple(e.row for e in episodes)).to(prompts.input_ids.device)

    def _rollout(self, episodes: Sequence[_Episode], prompts: PromptBatch, version: Tensor, kept: bool) -> Rollout:
        prompt_ids, prompt_mask = left_pad([episode.prompt for episode in episodes], self._pad)
        ids, attended = right_pad([episode.ids for episode in episodes], self._pad)
        mask = right_pad([episode.written for episode in episodes], 0)[0].bool()
        logprobs = torch.zeros(ids.shape)
        logprobs[attended] = torch.tensor([x for episode in episodes for x in episode.logprobs])
        return Rollout(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=ids,
            mask=mask,
            finished=torch.tensor([episode.finished for episode in episodes]),
            rollout_logprobs=logprobs if kept else None,
            weight_version=version,
            rows=tuple(_rewarded(episode) for episode in episodes),
            context=attended & ~mask,
            asked=prompts,
        ).to(prompts.input_ids.device)


def following(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, text: str, last: int, given: Mapping[str, Any] | None = None
) -> list[int]:
    """Ids of an environment's text: as it is after a prompt of text, else as the user's message of the chat template.

    Args:
        tokenizer: of the policy.
        prompt: text or messages.
        text: of the environment.
        last: token of the policy's turn; the end of a turn that the template writes is added where the policy did not.
        given: what the row gives the chat template besides its messages.
    """
    if isinstance(prompt, str):
        return encode(tokenizer, [text])[0]
    messages = [*prompt, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": text}]
    rendered = render(tokenizer, messages, generation_prompt=True, given=given or {})
    ids = encode(tokenizer, [rendered.partition(ANSWER)[2]])[0]
    return ids[1:] if ids and ids[0] == last else ids


def _turns(rollout: Rollout) -> list[tuple[list[int], list[float], bool]]:
    """Tokens of each answer, their log-probabilities, 0 where the engine keeps none; and whether it ended."""
    logprobs = rollout.rollout_logprobs
    logprobs = torch.zeros(rollout.mask.shape) if logprobs is None else logprobs
    columns = zip(rollout.response_ids, logprobs, rollout.mask, rollout.finished.tolist(), strict=True)
    return [(ids[real].tolist(), numbers[real].tolist(), ended) for ids, numbers, real, ended in columns]


def _rewarded(episode: _Episode) -> Row:
    reward = getattr(episode.environment, "reward", None)
    if reward is None:
        return episode.row
    with episode.naming("reward"):
        return {**episode.row, "environment_reward": reward()}
