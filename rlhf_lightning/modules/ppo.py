"""Phase 3: raise the score while staying near the reference (Ouyang et al. 2022, arXiv:2203.02155; Schulman et al.
2017, arXiv:1707.06347)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.advantage import gae
from rlhf_lightning.functional.kl import shaped_rewards
from rlhf_lightning.functional.logprobs import entropy_of, gather_logprobs, log_softmax
from rlhf_lightning.functional.ppo import PolicyLoss, clipped_policy_loss, clipped_value_loss
from rlhf_lightning.kl_control import FixedKL, KLController
from rlhf_lightning.models import FrozenModels, Pretrained, ScalarModel, ValueHead, eos_token_ids, frozen_copy
from rlhf_lightning.models.forward import response_forward
from rlhf_lightning.models.sharding import gathered
from rlhf_lightning.models.trunk import run_lower
from rlhf_lightning.modules.base import OptimizerFactory, SchedulerFactory, depth_of, load_policy
from rlhf_lightning.modules.objective import objective
from rlhf_lightning.modules.online import Forward, OnlineModule
from rlhf_lightning.modules.settings import PPOSettings
from rlhf_lightning.rollout import LoopEngine, RolloutEngine, Sampling
from rlhf_lightning.scoring import Scorer
from rlhf_lightning.types import Experience, PromptBatch, Rollout

Critic = Pretrained | ScalarModel | Literal["policy", "shared_trunk"]
AdvantageFunction = Callable[..., tuple[Tensor, Tensor]]
PolicyLossFunction = Callable[..., PolicyLoss]


class PPOModule(OnlineModule):
    """One `training_step` is one whole iteration: sample, score, price the KL, learn.

    Args:
        policy: a loading recipe or a causal language model; a frozen copy of it becomes the reference.
        scorer: judges the answers, see `rlhf_lightning.scoring`.
        tokenizer: of the policy; taken from the recipe by default.
        optimizer: called with the parameter groups ``policy`` and ``critic``; AdamW(lr=1e-5, eps=1e-5) by default.
        scheduler: called with the optimizer and ``total_steps=``; None keeps the learning rate.
        critic: a recipe of a reward model to start from, a `ScalarModel`, ``"policy"`` for a copy of the policy's
            trunk with a zero head, or ``"shared_trunk"`` for a zero head on the policy itself.
        engine: samples the answers; `LoopEngine` by default.
        sampling: length and temperature of the answers.
        kl_controller: sets the KL price; ``FixedKL()`` by default.
        advantage: ``f(rewards, values, mask) -> (advantages, returns)``, all [B, T].
        policy_loss: ``f(logprobs, old_logprobs, advantages, mask, *, denominator) -> PolicyLoss``.
        settings: the numbers of the update.
    """

    trains = "policy"

    def __init__(
        self,
        policy: Pretrained | PreTrainedModel,
        scorer: Scorer,
        tokenizer: PreTrainedTokenizerBase | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        critic: Critic = "policy",
        engine: RolloutEngine | None = None,
        sampling: Sampling | None = None,
        kl_controller: KLController | None = None,
        advantage: AdvantageFunction = gae,
        policy_loss: PolicyLossFunction = clipped_policy_loss,
        settings: PPOSettings | None = None,
    ) -> None:
        settings = settings or PPOSettings()
        if tokenizer is None and not isinstance(policy, Pretrained):
            raise ConfigError(
                "PPOModule(policy=<model>) also needs tokenizer=, since a plain model does not know its own"
            )
        super().__init__(
            tokenizer or policy.tokenizer(),  # type: ignore[operator]
            optimizer or partial(torch.optim.AdamW, lr=1e-5, eps=1e-5, weight_decay=0.0),
            scheduler,
            settings,
        )
        self._sources = (policy, critic)  # a tuple: Lightning would register bare models
        self.scorer = scorer
        self.engine: RolloutEngine = engine or LoopEngine()
        self.sampling = sampling or Sampling()
        self.sampling.require_scorable()
        self.kl_controller: KLController = kl_controller or FixedKL()
        self.advantage = advantage
        self.policy_loss = policy_loss
        self.freeze_below = depth_of(policy)
        self.policy: PreTrainedModel | None = None
        self.critic: ScalarModel | ValueHead | None = None
        self.frozen = FrozenModels()

    def build(self) -> None:
        """Load the policy, copy it as the reference, and build the critic."""
        policy = load_policy(self._sources[0])
        self.frozen.add("reference", frozen_copy(policy))
        self.critic = self._build_critic(policy)
        self.policy = policy

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One PPO iteration."""
        with self.phase("generate"):
            rollout = self.generate(batch)
        with self.phase("score"):
            scores = self.score(rollout)
        with self.phase("evaluate"):
            experience = self.evaluate(rollout, scores)
        with self.phase("learn"):
            updates = self.learn(experience)
        achieved = objective(self, experience) | self.price()
        self.kl_controller.update(achieved["objective/kl"], num_sequences=int(achieved["episodes"]))
        self.finish(experience, achieved | updates)

    def price(self) -> dict[str, float]:
        """What a nat of KL costs in this iteration, and the KL that is steered to."""
        target = self.kl_controller.target
        return {"objective/kl_coef": self.kl_controller.coef} | (
            {} if target is None else {"objective/kl_target": target}
        )

    def generate(self, prompts: PromptBatch) -> Rollout:
        """Sample one answer per prompt from the current policy."""
        assert self.policy is not None
        ends = eos_token_ids(self.policy, self.tokenizer)
        self.engine.sync(self.policy, ends, self.tokenizer.pad_token_id, self.optimizer_steps)
        with gathered(self.policy):
            return self.engine.generate(prompts, self.sampling)

    def score(self, rollout: Rollout) -> Tensor:
        """The scorer's verdicts, float32 [B]."""
        return self.scorer.score(rollout, self.tokenizer)

    @torch.no_grad()
    def evaluate(self, rollout: Rollout, scores: Tensor) -> Experience:
        """Log-probabilities, values, KL price, advantages and returns of a rollout, nothing with a gradient.

        The forward runs in the very micro-batches of the first learning pass, so that its first ratio is exactly 1.
        """
        order = torch.arange(len(rollout))
        parts = [self._evaluate_rows(rollout.select(rows)) for rows in order.split(self.schedule(len(rollout)).micro)]
        now, ref_logprobs, hidden = (_cat(column) for column in zip(*parts, strict=True))
        logprobs, values = now[..., 0], now[..., 1]
        settings = self.settings
        shaped = shaped_rewards(
            scores,
            logprobs,
            ref_logprobs,
            rollout.mask,
            rollout.finished,
            kl_coef=self.kl_controller.coef,
            score_clip=settings.score_clip,
            missing_eos_penalty=settings.missing_eos_penalty,
        )
        advantages, returns = self.compute_advantages(shaped.rewards, values, rollout.mask)
        if settings.whiten_advantages:
            advantages = self.whiten(advantages, rollout.mask)
        return Experience(rollout, scores, logprobs, ref_logprobs, values, shaped.rewards, advantages, returns, hidden)

    def compute_advantages(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages and returns, each [B, T], from rewards and values [B, T]."""
        return self.advantage(rewards, values, mask)

    def loss(self, batch: Experience, denominator: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, and statistics to be logged.

        Args:
            batch: a micro-batch of experience.
            denominator: tokens of the whole minibatch over all ranks [], so that micro-batches and ranks sum to the
                mean.
        """
        now = self.forward_policy(batch.rollout, batch.hidden)
        policy = self.policy_loss(now.logprobs, batch.logprobs, batch.advantages, batch.mask, denominator=denominator)
        value = clipped_value_loss(
            now.values, batch.values, batch.returns, batch.mask,
            clip_range=self.settings.value_clip_range, denominator=denominator,
        )  # fmt: skip
        learning_policy = self.rollouts >= self.settings.critic_warmup
        loss = policy.loss * float(learning_policy) + self.settings.value_coef * value.loss
        return loss, self.statistics(policy, value, now.entropy, batch.mask, denominator)

    def forward_policy(self, rollout: Rollout, hidden: Tensor | None = None) -> Forward:
        """Log-probabilities, values and entropy of every response token under the policy in training, each [B, T]."""
        assert self.policy is not None and self.critic is not None
        width = rollout.mask.shape[1]
        ids, attention = rollout.input_ids, rollout.attention_mask
        shares = isinstance(self.critic, ValueHead)
        out = response_forward(
            self.policy, ids, attention, width, hidden=hidden, freeze_below=self.freeze_below, with_states=shares
        )
        if shares:
            values = self.critic(out.states)
        else:
            values = self.critic(ids, attention, hidden)[:, -width - 1 : -1]
        log_probs = log_softmax(out.logits, temperature=self.sampling.temperature)
        chosen = log_probs.gather(-1, rollout.response_ids.unsqueeze(-1)).squeeze(-1)
        return Forward(chosen, values, entropy_of(log_probs.detach()))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups ``policy`` and ``critic``."""
        named = {"policy": self.policy, "critic": self.critic}
        return [{"name": n, "params": [p for p in m.parameters() if p.requires_grad]} for n, m in named.items()]  # type: ignore[union-attr]

    def sharded_modules(self) -> list[nn.Module]:
        """Policy, critic and reference."""
        if self.freeze_below or isinstance(self.critic, ValueHead):
            raise ConfigError(
                "trainer=fsdp2 needs model.freeze_below=0 and a separate critic; use trainer=ddp for the other layouts"
            )
        return [self.policy, self.critic, self.frozen["reference"]]  # type: ignore[list-item]

    def _evaluate_rows(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor | None]:
        ids, attention, width = rollout.input_ids, rollout.attention_mask, rollout.mask.shape[1]
        hidden = run_lower(self.policy, self.freeze_below, ids, attention) if self.freeze_below else None  # type: ignore[arg-type]
        now = self.forward_policy(rollout, hidden)
        reference = response_forward(
            self.frozen["reference"], ids, attention, width, hidden=hidden, freeze_below=self.freeze_below  # type: ignore[arg-type]
        )  # fmt: skip
        ref_logprobs = gather_logprobs(reference.logits, rollout.response_ids, temperature=self.sampling.temperature)
        return torch.stack([now.logprobs, now.values], dim=-1), ref_logprobs, hidden

    def _build_critic(self, policy: PreTrainedModel) -> ScalarModel | ValueHead:
        source = self._sources[1]
        if source == "shared_trunk":
            return ValueHead(policy.config.get_text_config().hidden_size)
        if source == "policy":
            return ScalarModel.from_policy(policy, self.freeze_below)
        critic = ScalarModel(source.reward_model(), self.freeze_below) if isinstance(source, Pretrained) else source
        assert isinstance(critic, ScalarModel)
        if self.freeze_below:
            critic.share_lower(policy)
        return critic


def _cat(parts: tuple[Any, ...]) -> Any:
    return None if parts[0] is None else torch.cat(parts)
