"""How a module gets its rollouts: each sampled before it is learned from, or while the one before is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.metrics.rollout import Sampled
from rlhf_lightning.models import eos_token_ids
from rlhf_lightning.modules.base import OptimizerFactory, RLHFModule, SchedulerFactory
from rlhf_lightning.modules.engine_check import EngineCheck
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout import RolloutEngine, Sampling, rank_seed
from rlhf_lightning.rollout.copies import refreshed
from rlhf_lightning.rollout.engine import close, weights_for
from rlhf_lightning.training.pending import PendingRollout
from rlhf_lightning.training.step_guard import on_all_ranks
from rlhf_lightning.types import Experience, PromptBatch, Rollout

A_LOGIT = "a logit in generation"


class _Copy:
    """Of the policy; in an object of its own, since Lightning would register a bare model."""

    model: PreTrainedModel | None = None


class RolloutModule(RLHFModule):
    """Base of modules that sample what they learn from."""

    engine: RolloutEngine
    check_engine: EngineCheck
    sampling: Sampling
    policy: PreTrainedModel | None

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        settings: PPOSettings,
    ) -> None:
        super().__init__(tokenizer, optimizer, scheduler, settings.max_grad_norm, settings.max_skipped_steps)
        self.settings = settings
        self.optimizer_steps = 0
        self.pending = PendingRollout()  # of the next step, with ``sample_ahead``
        self._copy = _Copy()
        self._sampled = Sampled(0, 0.0)
        self.recorder: Any = None  # set by `RecordRollouts`

    def answers(self, prompts: PromptBatch) -> Rollout:
        """One answer to each row of the batch at hand; with ``sample_ahead`` sampled during the step before.

        The next rollout is begun then, with the weights of now, so that it is always one rollout old. The first of a
        run, and one after a step that had to be given up here, is sampled at once.
        """
        if not self.settings.sample_ahead:
            return self.generate(prompts)
        if self.pending.is_there:
            rollout = on_all_ranks(A_LOGIT, partial(self.pending.take, prompts), prompts, self.ranks)
            self._note(rollout, self.pending.seconds)
        else:
            self.check_engine.before(self, prompts)
            rollout = self.generate(prompts)
        if not (self.trainer.is_last_batch and self.trainer.current_epoch + 1 == self.trainer.max_epochs):
            self._begin_next()
        return rollout

    def generate(self, prompts: PromptBatch, sampling: Sampling | None = None) -> Rollout:
        """Sample one answer per row from the current policy, when nothing else is sampled any more."""
        start = time.perf_counter()
        rollout = self._sample(prompts, sampling)
        self._note(rollout, time.perf_counter() - start)
        return rollout

    def generate_aside(self, prompts: PromptBatch, seed: int, sampling: Sampling | None = None) -> Rollout:
        """The same by random numbers of ``seed`` and the rank; training samples as if nobody had asked."""
        self.pending.wait()
        state = self.engine.state_dict()
        self.engine.seed(rank_seed(seed, self.global_rank))
        try:
            return self._sample(prompts, sampling)
        finally:
            self.engine.load_state_dict(state)

    def as_sampled(self, experience: Experience) -> Experience:
        """The experience with log-probabilities of the policy that drew the answers, of which KL and entropy are told.

        With ``sample_ahead`` that is the one before. Its answers are not where the policy that learns would go, so that
        their mean log-ratio to the reference under the latter is no KL, and can be negative.
        """
        drawn = experience.rollout.rollout_logprobs
        if not self.settings.sample_ahead or drawn is None:
            return experience
        return replace(experience, logprobs=drawn)

    def _begin_next(self) -> None:
        loader: Any = self.trainer.train_dataloader
        prompts = loader.peek().to(self.device).repeat_interleave(self.settings.group_size)
        self.check_engine.before(self, prompts)
        self._give_weights()
        self.pending.begin(partial(self.engine.generate, prompts, self.sampling, self.tokenizer), self.device)

    def _give_weights(self) -> None:
        """The weights of now to the engine; a copy of them where it would decode with those that learn meanwhile."""
        assert self.policy is not None
        ends, pad = eos_token_ids(self.policy, self.tokenizer), self.tokenizer.pad_token_id
        self.engine.sync(self.policy, ends, pad, self.optimizer_steps)
        if self.settings.sample_ahead and getattr(self.engine, "is_exact", False):
            self._copy.model = refreshed(self._copy.model, self.policy)
            self.engine.sync(self._copy.model, ends, pad, self.optimizer_steps)

    def _sample(self, prompts: PromptBatch, sampling: Sampling | None) -> Rollout:
        self.pending.wait()
        self._give_weights()
        answer = partial(self.engine.generate, prompts, sampling or self.sampling, self.tokenizer)
        assert self.policy is not None
        with weights_for(self.engine, self.policy):
            return on_all_ranks(A_LOGIT, answer, prompts, self.ranks)

    def _note(self, rollout: Rollout, seconds: float) -> None:
        self._sampled = self._sampled.plus(rollout, seconds)
        if self.recorder is not None:
            self.recorder.sampled(rollout, self.tokenizer)

    def on_fit_start(self) -> None:
        """Give every rank its own random stream."""
        self.engine.seed(rank_seed(self.settings.seed, self.global_rank))

    def teardown(self, stage: str) -> None:
        """Let the engine go."""
        self.pending.drop()
        close(self.engine)

    def rank_state(self) -> dict[str, Any]:
        """Also the rollout that is sampled ahead, once it is finished, and the engine as it is then."""
        pending = self.pending.state_dict()
        return super().rank_state() | {"engine": self.engine.state_dict(), "pending": pending}

    def load_rank_state(self, state: Mapping[str, Any]) -> None:
        """See `RLHFModule`."""
        super().load_rank_state(state)
        self.engine.load_state_dict(state["engine"])
        self.pending.load_state_dict(state["pending"] if self.settings.sample_ahead else {})

    def seed_rank_state(self, first: Mapping[str, Any], seed: int) -> None:
        """See `RLHFModule`; what the processes before have sampled ahead is sampled again."""
        super().seed_rank_state(first, seed)
        self.engine.seed(seed)
