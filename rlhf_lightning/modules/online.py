"""The machinery around the algorithm: updates in micro-batches over ranks, counters, logging, resume.

Everything persistent changes between the fetch of a batch and the end of `training_step`; checkpoints fall on that
boundary, so no rollout is saved but one that was sampled ahead. Lightning's manual optimisation leaves accumulation,
clipping and schedule to us.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.functional.aggregate import Aggregation
from rlhf_lightning.metrics.rollout import Sampled
from rlhf_lightning.metrics.update import UpdateMetrics, moments, of_padding
from rlhf_lightning.models import FrozenModels
from rlhf_lightning.models.forward import packs_rows
from rlhf_lightning.modules.base import OptimizerFactory, SchedulerFactory
from rlhf_lightning.modules.ppo_rules import check_start
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.modules.resampling import Judged, with_other_prompts
from rlhf_lightning.modules.rollouts import RolloutModule
from rlhf_lightning.modules.scales import ScoreScale, ValueScale
from rlhf_lightning.optim.kl_controllers import KLController
from rlhf_lightning.scoring import Scorer, details_of, place, state_of
from rlhf_lightning.training.micro_batches import Schedule, micro_batches, take
from rlhf_lightning.training.smaller_batches import SmallerMicroBatches
from rlhf_lightning.training.step_guard import NotFinite, on_all_ranks
from rlhf_lightning.types import Experience, PromptBatch, Rollout

T = TypeVar("T")
COUNTERS = ("rollouts", "optimizer_steps", "episodes", "tokens")


class Denominators(NamedTuple):
    """What losses are divided by: counts of a whole minibatch over all its micro-batches and ranks, each []."""

    policy: Tensor  # as the aggregation of the policy loss counts
    tokens: Tensor


class OnlineModule(RolloutModule):
    """Base of modules whose `training_step` samples its own data and takes several optimizer steps."""

    scorer: Scorer
    kl_controller: KLController
    frozen: FrozenModels
    aggregation: Aggregation
    freeze_below: int = 0  # lowest layers of the policy that do not learn

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        settings: PPOSettings,
    ) -> None:
        super().__init__(tokenizer, optimizer, scheduler, settings)
        self.automatic_optimization = False
        self.rollouts = self.episodes = self.tokens = 0
        self.last_experience: Experience | None = None
        self._order = torch.Generator().manual_seed(settings.seed)
        self._seconds: dict[str, float] = {}
        self._resampled: Judged | None = None
        self.pretraining: Callable[[OnlineModule], Tensor] | None = None  # set by `PretrainingMix`
        self.smaller = SmallerMicroBatches(self.stage)
        self.score_scale, self.value_scale = ScoreScale(), ValueScale()
        self.gave_up = False  # whether the last iteration ended before there was anything to learn from

    def score(self, rollout: Rollout) -> Tensor:
        """What the scorer gives, float32: [B], or [B, T] where it judges tokens; NaN where nobody judged."""
        scores = on_all_ranks("a score", partial(self.scorer.score, rollout, self.tokenizer), rollout, self.ranks)
        if self.recorder is not None:
            self.recorder.scored(rollout, scores)
        return scores

    def resample(self, rollout: Rollout, scores: Tensor) -> tuple[Rollout, Tensor]:
        """Answers to other prompts instead of groups whose scores are all the same, see `with_other_prompts`."""
        if self.settings.max_resamples:
            first, pad = Judged(rollout, scores, details_of(self.scorer, rollout)), self.tokenizer.pad_token_id
            draw = self.trainer.train_dataloader.draw  # type: ignore[union-attr]
            self._resampled = with_other_prompts(first, self._judged, draw, self.ranks, self.settings, pad)
            rollout, scores, _ = self._resampled
        return rollout, scores

    def _judged(self, prompts: PromptBatch) -> Judged:
        rollout = self.generate(prompts.to(self.device))
        return Judged(rollout, self.score(rollout), details_of(self.scorer, rollout))

    def details_of(self, rollout: Rollout) -> Mapping[str, Tensor]:
        """What the scorer tells about a rollout beside the scores, columns [B]."""
        known = self._resampled
        return known.details if known and known.rollout is rollout else details_of(self.scorer, rollout)

    def loss(self, batch: Experience, denominators: Denominators) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch; each algorithm implements it. Where memory runs out, one rank calls it again."""
        raise NotImplementedError

    def total_optimizer_steps(self) -> int:
        """Rollouts times updates per rollout."""
        batches = int(self.trainer.estimated_stepping_batches)
        return max(batches * self.settings.ppo_epochs * self.settings.num_minibatches, 1)

    def schedule(self, rows: int) -> Schedule:
        """Sizes per rank for a rollout of ``rows`` responses on this rank."""
        schedule = self.settings.schedule(rows * self.ranks.size, self.ranks.size)
        assert self.policy is not None
        return replace(schedule, packed=packs_rows(self.policy))

    def learn(self, experience: Experience) -> dict[str, float]:
        """Epochs x minibatches of optimizer steps; stops early where the policy has moved too far."""
        metrics = UpdateMetrics()
        schedule = self.schedule(len(experience.rollout))
        for minibatch in self._minibatches(schedule):
            if not self._update(experience.select(minibatch), schedule, metrics):
                break
        if not metrics.steps:
            return {"policy/updates": 0.0}
        learned = {"train/learning_rate": self.learning_rate} | metrics.summary(self.ranks)
        learned |= moments(experience, self.ranks, has_critic=self.has_critic)
        self.value_scale.watch(learned.get("val/var_explained"))
        return learned

    def _minibatches(self, schedule: Schedule) -> Iterator[Tensor]:
        """Rows of each optimizer step. The first pass keeps the loader's order, in which `evaluate` ran."""
        for epoch in range(self.settings.ppo_epochs):
            rows = torch.randperm(schedule.rows, generator=self._order) if epoch else torch.arange(schedule.rows)
            for minibatch in rows.split(schedule.minibatch):
                yield minibatch.sort().values  # again neighbours, where they answer the same prompt

    def fitting(self, attempt: Callable[[Schedule], T], schedule: Schedule) -> T:
        """``attempt`` in micro-batches that fit into memory, see `SmallerMicroBatches`."""
        return self.smaller.run(attempt, schedule, self.ranks, self.trainer.optimizers[0].zero_grad)

    def _update(self, minibatch: Experience, schedule: Schedule, metrics: UpdateMetrics) -> bool:
        """One optimizer step on a minibatch; False, and no step, where KL(old || new) or a broken number forbids it."""
        optimizer: Any = self.optimizers()
        unproven = self.ranks.averages and self.smaller.is_unproven(minibatch.rollout, schedule)
        learned = minibatch.mask.sum()
        counts = torch.stack([self.aggregation.count(minibatch.mask), learned, learned.new_tensor(unproven)]).double()
        *totals, wish = self.ranks.reduce(counts).float()
        denominators, apart = Denominators(*totals), self.ranks.averages and bool(wish)
        with self.ranks.accumulating(last=not apart):  # else gradients stay here, so that a rank may begin again
            step = self.fitting(partial(self._accumulate, minibatch, denominators), schedule)
        if apart:
            self.ranks.average_gradients(self.parameters())
        approx_kl = self.ranks.sum(step.sums["approxkl"])[0]
        limit = self.settings.max_approx_kl
        if limit is not None and approx_kl / max(float(denominators.tokens), 1.0) > limit:
            optimizer.zero_grad()
            return False
        optimizer.step()
        optimizer.zero_grad()
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
        self.optimizer_steps += 1
        if self.guard.failed:
            return False
        if apart:
            self.smaller.passed(minibatch.rollout, schedule)
        norms = {"grad_norm": self._grad_norm} | {f"grad_norm_{n}": v for n, v in self._group_norms.items()}
        metrics.add(step.sums | {name: norm / self.ranks.size for name, norm in norms.items()}, step.highest)
        metrics.steps += 1
        return True

    def _accumulate(self, minibatch: Experience, denominators: Denominators, schedule: Schedule) -> UpdateMetrics:
        """The gradient of a minibatch, summed over its micro-batches."""
        step = UpdateMetrics()
        self.guard.restart()
        if self.pretraining is not None and self.rollouts >= self.settings.critic_warmup:
            step.add({"loss_pretraining": self.pretraining(self)})
        groups = micro_batches(minibatch.rollout, schedule)
        for number, rows in enumerate(groups):
            micro_batch = take(minibatch, rows, schedule)
            with self.ranks.accumulating(last=number == len(groups) - 1):
                loss, stats = self.loss(micro_batch, denominators)
                self.manual_backward(loss * self.ranks.size)  # ranks are averaged, and the denominator is global
            self.guard.record(micro_batch, loss)
            step.add(stats | {"loss": loss.detach()} | of_padding(micro_batch.rollout))
        return step

    @property
    def step_number(self) -> int:
        """The rollout at hand; the first is 1."""
        return self.rollouts + 1

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """One iteration; all ranks give it up where a number of any of them is not finite. See `StepGuard.fail`."""
        self.guard.begin()
        self.gave_up = False
        try:
            yield
        except NotFinite as fault:
            self.guard.fail(fault, self.step)
            self.gave_up = True
            self.rollouts += 1
            self.log_dict(self.guard.logged())

    @property
    def has_critic(self) -> bool:
        """Whether values are learned beside the policy."""
        return self.settings.baseline == "critic"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the iteration."""
        start = time.perf_counter()
        yield
        self._seconds[f"perf/seconds_{name}"] = time.perf_counter() - start

    def finish(self, experience: Experience, metrics: Mapping[str, float]) -> None:
        """Count, keep the experience for the callbacks, and log once."""
        self.rollouts += 1
        self.episodes += int(metrics["episodes"])
        self.tokens += int(metrics["tokens"])
        self.last_experience = experience
        total = sum(self._seconds.values())
        sampled, seconds = self.ranks.sum(*self._sampled)
        self._sampled = Sampled(0, 0.0)
        speeds = {
            "perf/tokens_per_second": metrics["tokens"] / max(total, 1e-9),
            "perf/tokens_per_second_generate": self.ranks.size * sampled / max(seconds, 1e-9),
        }
        counts = {"episode": float(self.episodes), "tokens": float(self.tokens)}
        logged = {n: v for n, v in metrics.items() if n not in ("episodes", "tokens")} | counts | speeds
        self.log_dict(logged | self.guard.logged() | self.smaller.logged(self.ranks) | self._seconds)

    def on_fit_start(self) -> None:
        """Move what Lightning does not see too."""
        super().on_fit_start()
        self.frozen.to(self.device)
        place(self.scorer, self)

    def on_train_start(self) -> None:
        """Train mode for the critic too; refuse prompts that leave no room for an answer."""
        super().on_train_start()
        check_start(self.policy, self.trainer, self.settings, self.sampling)
        for module in self.children():
            module.train()

    def progress(self) -> dict[str, Any]:
        """Counters, KL controller, scorer and the scales of scores and values."""
        counters = {name: getattr(self, name) for name in COUNTERS}
        scales = {"score_std": self.score_scale.std, "values": self.value_scale.state_dict()}
        return {**counters, "kl": self.kl_controller.state_dict(), "scorer": state_of(self.scorer), "scales": scales}

    def load_progress(self, state: Mapping[str, Any]) -> None:
        """See `RLHFModule`."""
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.kl_controller.load_state_dict(state["kl"])
        self.score_scale.std = state["scales"]["score_std"]
        self.value_scale.load_state_dict(state["scales"]["values"])
        if state.get("scorer") and hasattr(self.scorer, "load_state_dict"):
            self.scorer.load_state_dict(state["scorer"])

    def rank_state(self) -> dict[str, Any]:
        """Also the stream of the minibatch order."""
        return super().rank_state() | {"order": self._order.get_state()}

    def load_rank_state(self, state: Mapping[str, Any]) -> None:
        """See `RLHFModule`."""
        super().load_rank_state(state)
        self._order.set_state(state["order"])

    def seed_rank_state(self, first: Mapping[str, Any], seed: int) -> None:
        """See `RLHFModule`; the order of minibatches is drawn alike on all ranks, and goes on."""
        super().seed_rank_state(first, seed)
        self._order.set_state(first["order"])
