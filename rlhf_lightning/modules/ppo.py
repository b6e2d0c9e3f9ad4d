"""Phase 3: raise the score while staying near the reference (Ouyang et al. 2022, arXiv:2203.02155; Schulman et al.
2017, arXiv:1707.06347)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.advantage import gae, reward_to_go
from rlhf_lightning.functional.aggregate import aggregation, token_mean
from rlhf_lightning.functional.kl import ESTIMATORS, estimate, shape_scores, shaped_rewards, totals
from rlhf_lightning.functional.masking import spread
from rlhf_lightning.functional.ppo import PolicyLoss, clipped_policy_loss, clipped_value_loss
from rlhf_lightning.metrics.rollout import engine_gap, rollout_metrics
from rlhf_lightning.metrics.shown import ONLINE
from rlhf_lightning.metrics.update import of_policy, of_value
from rlhf_lightning.models import FrozenModels, Pretrained, ValueHead
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.packing import lower_states
from rlhf_lightning.models.recipes import depth_of, load_reference, load_trained, offloads, tokenizer_of
from rlhf_lightning.modules.base import OptimizerFactory, SchedulerFactory
from rlhf_lightning.modules.bootstrapping import one_token_longer, values_after
from rlhf_lightning.modules.critics import Critic, build_critic, critic_numbers
from rlhf_lightning.modules.engine_check import EngineCheck, in_full_precision
from rlhf_lightning.modules.online import Denominators, OnlineModule
from rlhf_lightning.modules.ppo_rules import check_combination, check_parts, engine_for, penalty_of
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.optim.kl_controllers import FixedKL, KLController
from rlhf_lightning.rollout import LoopEngine, RolloutEngine, Sampling
from rlhf_lightning.rules.placement import FSDP2_LAYOUT
from rlhf_lightning.scoring import Scorer
from rlhf_lightning.training.micro_batches import evaluated, neighbours
from rlhf_lightning.training.step_guard import require_finite
from rlhf_lightning.types import Experience, Forward, PromptBatch, Rollout

AdvantageFunction = Callable[..., tuple[Tensor, Tensor]]
PolicyLossFunction = Callable[..., PolicyLoss]


class PPOModule(OnlineModule):
    """One `training_step` is one whole iteration: sample, score, subtract the KL penalty, learn.

    PPO, RLOO, GRPO, REINFORCE++ and their kin differ only in ``advantage``, ``policy_loss`` and ``settings``;
    ``conf/algorithm/`` holds the combinations that have names.

    Args:
        policy: a loading recipe or a causal language model.
        scorer: judges the answers, see `rlhf_lightning.scoring`.
        tokenizer: of the policy; taken from the recipe by default.
        optimizer: called with the parameter groups ``policy`` and ``critic``; AdamW(lr=1e-5, eps=1e-5) by default.
        scheduler: see `RLHFModule`.
        reference: see `load_reference`.
        critic: what the critic starts from, see `rlhf_lightning.modules.critics.Critic`; unused without one.
        engine: samples the answers; `LoopEngine` by default.
        sampling: length and temperature of the answers.
        kl_controller: sets the KL penalty; ``FixedKL()`` by default.
        advantage: ``f(rewards, values, mask) -> (advantages, returns)``, all [B, T].
        policy_loss: see `rlhf_lightning.functional.policy`.
        settings: the numbers of the update.

    Raises:
        ConfigError: the combination is invalid, see `rlhf_lightning.modules.ppo_rules`.
    """

    stage, trains, shown = "ppo", "policy", ONLINE

    def __init__(
        self,
        policy: Pretrained | PreTrainedModel,
        scorer: Scorer,
        tokenizer: PreTrainedTokenizerBase | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        reference: Pretrained | PreTrainedModel | None = None,
        critic: Critic = "shared_trunk",
        engine: RolloutEngine | None = None,
        sampling: Sampling | None = None,
        kl_controller: KLController | None = None,
        advantage: AdvantageFunction = gae,
        policy_loss: PolicyLossFunction = clipped_policy_loss,
        settings: PPOSettings | None = None,
    ) -> None:
        settings, sampling = settings or PPOSettings(), sampling or Sampling()
        check_parts(policy, scorer)
        check_combination(settings, sampling, advantage, policy_loss, critic)
        super().__init__(
            tokenizer or tokenizer_of(policy),
            optimizer or partial(torch.optim.AdamW, lr=1e-5, eps=1e-5, weight_decay=0.0),
            scheduler,
            settings,
        )
        self._sources = (policy, critic, reference)  # a tuple: Lightning would register bare models
        self.scorer = scorer
        self.engine: RolloutEngine = engine_for(settings, engine or LoopEngine())
        self.sampling = sampling
        self.kl_controller: KLController = penalty_of(kl_controller or FixedKL(), scorer)
        self.advantage = advantage
        self.policy_loss = policy_loss
        self.aggregation = aggregation(settings.aggregation, norm=sampling.max_new_tokens)
        self.freeze_below = depth_of(policy)
        self.policy: PreTrainedModel | None = None
        self.critic: nn.Module | None = None
        self.frozen = FrozenModels()
        self.check_engine = EngineCheck()

    def build(self) -> None:
        """Load the policy and its reference, and build the critic."""
        self.policy = load_trained(self._sources[0], dropout=False)
        reference = load_reference(self._sources[2], self.policy)
        self.frozen.add("reference", reference, offload=offloads(self._sources[0]), beside=self.policy)
        if self.has_critic:
            self.critic = build_critic(self._sources[1], self.policy, self.tokenizer, self.freeze_below, self.settings)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One PPO iteration; given up where a number is not finite."""
        with self.guarded():
            batch = batch.repeat_interleave(self.settings.group_size)
            with self.phase("generate"):
                rollout = self.answers(batch)
            with self.phase("score"):
                scores = self.score(rollout)
            rollout, scores = self.resample(rollout, scores)
            with self.phase("evaluate"), self.frozen.awake("reference"):
                experience = self.evaluate(rollout, scores)
                require_finite(experience, self.ranks)
            with self.phase("learn"):
                updates = self.learn(experience)
            achieved = self.rollout_metrics(experience)
            self.kl_controller.update(achieved["objective/kl"], num_sequences=int(achieved["episodes"]))
            self.finish(experience, achieved | updates)

    def rollout_metrics(self, experience: Experience) -> dict[str, float]:
        """What the rollout achieved, and at which KL coefficient. Collective."""
        self.guard.note_scores(experience.scores, self.step)
        details = self.details_of(experience.rollout)
        metrics = rollout_metrics(self.as_sampled(experience), self.ranks, self.settings.group_size, details)
        metrics["objective/kl_coef"] = self.kl_controller.coef
        if self.kl_controller.target is not None:
            metrics["objective/kl_target"] = self.kl_controller.target
        if not self.reuses_logprobs(experience.rollout):
            metrics |= engine_gap(experience, self.ranks)
        return metrics

    @torch.no_grad()
    def evaluate(self, rollout: Rollout, scores: Tensor) -> Experience:
        """Log-probabilities, values, KL penalty, advantages and returns of a rollout, nothing with a gradient.

        The forward runs in the very micro-batches of the first learning pass, so that its first ratio is exactly 1.
        """
        rows = partial(evaluated, self._evaluate_rows, rollout)
        now, ref_logprobs, hidden = self.fitting(rows, self.schedule(len(rollout)))
        assert now is not None and ref_logprobs is not None
        logprobs, values = now[..., 0], now[..., 1]
        self.check_engine(self, rollout, logprobs)
        settings, mask = self.settings, rollout.mask
        penalty = self.missing_eos_penalty(totals(scores, mask))
        known = ~totals(scores, mask).isnan()
        if settings.baseline == "greedy":
            greedy = self.greedy_baseline(rollout, penalty)
            values, known = greedy.nan_to_num(0.0)[:, None].expand_as(values), known & ~greedy.isnan()
        counted = known & rollout.finished if settings.mask_truncated else known
        learned = mask & counted[:, None]
        paid = scores.nan_to_num(0.0)
        if settings.bootstrap_truncated and paid.dim() == 1:
            paid = paid.where(rollout.finished, 0.0)  # a judgement of something else than the whole answer
        shaped = shaped_rewards(
            paid, logprobs, ref_logprobs, mask, rollout.finished,
            kl_coef=self.kl_controller.coef if settings.kl_placement == "reward" else 0.0,
            score_clip=settings.score_clip, missing_eos_penalty=penalty, estimator=ESTIMATORS[settings.kl_estimator],
        )  # fmt: skip
        if self.has_critic and not self.value_scale.is_fitted:
            self.value_scale.fit(values, reward_to_go(shaped.rewards, learned), learned, self.ranks)
            values = self.value_scale(values).masked_fill(~mask, 0)
        after = (self._values_after(rollout),) if settings.bootstrap_truncated else ()
        advantages, returns = self.compute_advantages(shaped.rewards, values, learned, *after)
        experience = Experience(
            rollout, totals(scores, mask), logprobs, ref_logprobs, values, shaped.rewards, advantages, returns,
            hidden=hidden, weights=settings.weights(logprobs, rollout), counted=None if counted.all() else counted,
        )  # fmt: skip
        if settings.whiten_advantages:
            return replace(experience, advantages=self.ranks.whiten(advantages, experience.mask))
        return experience

    def missing_eos_penalty(self, scores: Tensor) -> float:
        """What an answer of this rollout pays for being truncated; its scores [B]. Collective."""
        share = self.settings.eos_penalty(learned=getattr(self.scorer, "learned", False))
        return share * self.score_scale.update(scores, self.ranks) if share else 0.0

    def compute_advantages(
        self, rewards: Tensor, values: Tensor, mask: Tensor, bootstrap: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns, each [B, T], from rewards and values [B, T]; ``bootstrap`` [B]: values after them."""
        return self.advantage(rewards, values, mask, **({} if bootstrap is None else {"bootstrap": bootstrap}))

    def greedy_baseline(self, rollout: Rollout, missing_eos_penalty: float) -> Tensor:
        """Shaped score of the likeliest answer to each prompt, float32 [B], NaN where nobody judged it.

        Source: Li et al. 2023, arXiv:2310.10505.
        """
        size = self.settings.group_size
        each = torch.arange(0, len(rollout), size)
        prompts = rollout.asked or PromptBatch(rollout.prompt_ids, rollout.prompt_mask, rollout.rows)
        greedy = self.generate(prompts.select(each), replace(self.sampling, top_k=1))
        scores = totals(self.score(greedy), greedy.mask)
        shaped = partial(shape_scores, score_clip=self.settings.score_clip, missing_eos_penalty=missing_eos_penalty)
        return shaped(scores, greedy.finished).repeat_interleave(size)

    def loss(self, batch: Experience, denominators: Denominators) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, and sums for the log.

        Args:
            batch: a micro-batch of experience.
            denominators: counts of the whole minibatch over all ranks, so that micro-batches and ranks sum to the
                mean.
        """
        settings, mask = self.settings, batch.mask
        now = self.forward_policy(batch.rollout, batch.hidden)
        assert now.entropy is not None
        share = partial(self.aggregation.aggregate, mask=mask, denominator=denominators.policy)
        old = now.logprobs.detach() if self.reuses_logprobs(batch.rollout) else batch.logprobs
        policy = self.policy_loss(
            now.logprobs, old, batch.advantages, mask, weights=batch.weights,
            denominator=denominators.policy, aggregate=self.aggregation.aggregate,
        )  # fmt: skip
        loss, stats = policy.loss, of_policy(policy, now.entropy, mask)
        if settings.kl_placement == "loss":
            kl = share(estimate(now.logprobs, batch.ref_logprobs, mask, ESTIMATORS[settings.kl_estimator]))
            loss, stats["loss_kl"] = loss + self.kl_controller.coef * kl, kl
        if settings.entropy_coef:
            loss = loss - settings.entropy_coef * token_mean(now.entropy, mask, denominators.tokens)
        if self.rollouts < settings.critic_warmup:
            loss = loss * 0.0
        if self.has_critic:
            unit = self.value_scale.unit
            value = clipped_value_loss(
                now.values / unit, batch.values / unit, batch.returns / unit, mask,
                clip_range=settings.value_clip_range, denominator=denominators.tokens,
            )  # fmt: skip
            loss = loss + settings.value_coef * value.loss
            stats |= of_value(value)
        return loss, stats

    def forward_policy(self, rollout: Rollout, hidden: Tensor | None = None, *, entropy: bool = True) -> Forward:
        """Log-probabilities, values and, if asked for, entropy under the models in training, each [B, T]."""
        assert self.policy is not None
        mask, ids, attention = rollout.mask, rollout.input_ids, rollout.attention_mask
        out = token_scores(
            self.policy, ids, attention, rollout.sampled, temperature=self.sampling.temperature,
            entropy=entropy, entropy_grad=self.settings.entropy_coef != 0, hidden=hidden,
            freeze_below=self.freeze_below, with_states=isinstance(self.critic, ValueHead), groups=neighbours(rollout),
        )  # fmt: skip
        logprobs, values = spread(out.logprobs, mask), torch.zeros_like(mask, dtype=torch.float32)
        if self.critic is not None:
            values = self.value_scale(critic_numbers(self.critic, rollout, out.states, hidden)).masked_fill(~mask, 0)
        return Forward(logprobs, values, None if out.entropy is None else spread(out.entropy, mask))

    def reuses_logprobs(self, rollout: Rollout) -> bool:
        """Whether the policy need not be run on a rollout before it is learned from, see `PPOSettings`."""
        settings = self.settings
        once = settings.ppo_epochs == 1 and settings.num_minibatches == 1 and not self.has_critic
        exact = in_full_precision(self.engine, self.trainer.precision)
        wanted = settings.reuse_logprobs and settings.correction is None
        return wanted and once and exact and rollout.rollout_logprobs is not None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups ``policy`` and, if one learns, ``critic``, which may have a learning rate of its own."""
        rate = {} if self.settings.critic_lr is None else {"lr": self.settings.critic_lr}
        groups: list[Any] = [("policy", self.policy, {})] + [("critic", self.critic, rate)] * self.has_critic
        return [{"name": n, "params": [p for p in m.parameters() if p.requires_grad]} | own for n, m, own in groups]

    def sharded_modules(self) -> list[nn.Module]:
        """Policy, critic if there is one, and reference."""
        if self.freeze_below:
            raise ConfigError(FSDP2_LAYOUT)
        return [m for m in (self.policy, self.critic, self.frozen["reference"]) if m is not None]

    def _evaluate_rows(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor | None]:
        ids, attention, groups = rollout.input_ids, rollout.attention_mask, neighbours(rollout)
        hidden = lower_states(self.policy, self.freeze_below, ids, attention, groups) if self.freeze_below else None  # type: ignore[arg-type]
        if self.reuses_logprobs(rollout):
            now = Forward(rollout.rollout_logprobs, torch.zeros_like(rollout.rollout_logprobs), None)  # type: ignore[arg-type]
        else:
            now = self.forward_policy(rollout, hidden, entropy=False)
        reference = token_scores(
            self.frozen["reference"], ids, attention, rollout.sampled, temperature=self.sampling.temperature,  # type: ignore[arg-type]
            hidden=None if self._sources[2] else hidden, freeze_below=self.freeze_below, groups=groups,
        )  # fmt: skip
        return torch.stack([now.logprobs, now.values], dim=-1), spread(reference.logprobs, rollout.mask), hidden

    def _values_after(self, rollout: Rollout) -> Tensor:
        longer = one_token_longer(rollout)
        rows = partial(evaluated, lambda part: [self.forward_policy(part, entropy=False).values], longer)
        return values_after(rollout, self.fitting(rows, self.schedule(len(longer)))[0])  # type: ignore[arg-type]
