"""The numbers of an online algorithm, checked before any model loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.ratios import CORRECTIONS
from rlhf_lightning.rules.combinations import check_schedule
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.training.micro_batches import Schedule
from rlhf_lightning.types import Rollout

Aggregate = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "token_sum_norm"]
Placement = Literal["reward", "loss"]
Correction = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
Baseline = Literal["critic", "greedy", "none"]
Estimator = Literal["k1", "k2", "k3", "abs"]


@dataclass(frozen=True)
class PPOSettings:
    """How one rollout is shaped and learned from. Batch sizes count responses over all ranks.

    Args:
        group_size: responses to each prompt; group baselines compare them with each other.
        baseline: what an advantage function gets as values: those of the ``critic``, the score of the ``greedy`` answer
            to the same prompt (ReMax), or ``none``. Only ``critic`` trains one.
        ppo_epochs: passes over each rollout.
        num_minibatches: of each pass; every one is an optimizer step on an equal share of the rollout.
        micro_batch_size: responses per forward on one rank, by length of the longest; None takes the rank's whole
            minibatch. Changes memory and speed, never gradients.
        aggregation: how token losses become one number, see `rlhf_lightning.functional.aggregate`; the constant of
            ``token_sum_norm`` is the longest answer allowed.
        kl_placement: where a nat of KL is paid for: in the ``reward`` of each token, or in the ``loss`` of the policy.
        kl_estimator: of the KL of a sampled token: k1, k2, k3 or abs.
        correction: how the policy loss weighs tokens that the engine drew from other probabilities than training
            computes, see `rlhf_lightning.functional.ratios`; None ignores the difference.
        sample_ahead: sample each rollout while the one before is learned from, with the policy from before that; needs
            a ``correction``, and an engine that can (``rollout=loop`` or ``server``).
        entropy_coef: bonus per nat of the policy's entropy per token.
        reuse_logprobs: where a rollout is learned from in one update, without a critic and in full precision, take the
            log-probabilities of the engine for the KL penalty, and those of the update itself for its ratio, instead of
            computing them beforehand.
        max_approx_kl: stop the updates of a rollout once KL(old || new) exceeds this, nats per token; None never stops.
        value_coef: weight of the value loss.
        value_clip_range: half-width of the trust region around the old value, in standard deviations of the returns of
            the first rollout, as the value loss is.
        critic_lr: learning rate of the critic's own weights; None takes the optimizer's.
        score_clip: clip scores to plus or minus this before the KL penalty; None does not clip.
        missing_eos_penalty: subtracted from the score of an answer that was truncated, in standard deviations of the
            scores; None is 1 where a learned model scores, which no truncated answer was shown to, and 0 elsewhere.
        mask_truncated: do not learn from answers that were truncated.
        bootstrap_truncated: an answer that was truncated earns what the critic expects after its last token, instead of
            the score it got as if it had been whole (Pardo et al. 2018, arXiv:1712.00378).
        whiten_advantages: zero mean and unit variance over all tokens of the rollout, on all ranks.
        max_resamples: answer other prompts instead of those whose responses all score the same, at most so many times
            per rollout.
        critic_warmup: rollouts during which only the critic learns.
        max_grad_norm: clip the gradient norms of policy and critic to this, each by itself; 0 does not clip.
        max_skipped_steps: end the run when so many rollouts in a row met numbers that are not finite.
        seed: of sampling and of the minibatch order.
        by_length: cut a minibatch into micro-batches of responses of similar length (prompt included) and drop the
            padding that none of them needs; False cuts in order and keeps the width of the rollout.
    """

    group_size: int = 1
    baseline: Baseline = "critic"
    ppo_epochs: int = 1
    num_minibatches: int = 1
    micro_batch_size: int | None = None
    aggregation: Aggregate = "token_mean"
    kl_placement: Placement = "reward"
    kl_estimator: Estimator = "k1"
    correction: Correction | None = None
    sample_ahead: bool = False
    entropy_coef: float = 0.0
    reuse_logprobs: bool = True
    max_approx_kl: float | None = 0.1
    value_coef: float = 0.1
    value_clip_range: float = 0.2
    critic_lr: float | None = None
    score_clip: float | None = None
    missing_eos_penalty: float | None = None
    mask_truncated: bool = False
    bootstrap_truncated: bool = False
    whiten_advantages: bool = True
    max_resamples: int = 0
    critic_warmup: int = 0
    max_grad_norm: float = 1.0
    max_skipped_steps: int = 3
    seed: int = 0
    by_length: bool = True

    def __post_init__(self) -> None:
        require("ppo.settings.group_size", self.group_size, at_least=1)
        require("ppo.settings.ppo_epochs", self.ppo_epochs, at_least=1)
        require("ppo.settings.num_minibatches", self.num_minibatches, at_least=1)
        require("ppo.settings.micro_batch_size", self.micro_batch_size, at_least=1)
        require("ppo.settings.entropy_coef", self.entropy_coef, at_least=0)
        require("ppo.settings.max_approx_kl", self.max_approx_kl, above=0, why="null switches it off")
        require("ppo.settings.value_coef", self.value_coef, at_least=0)
        require("ppo.settings.value_clip_range", self.value_clip_range, above=0)
        require("ppo.settings.critic_lr", self.critic_lr, above=0)
        require("ppo.settings.missing_eos_penalty", self.missing_eos_penalty, at_least=0)
        require("ppo.settings.score_clip", self.score_clip, above=0, why="null switches it off")
        require("ppo.settings.max_resamples", self.max_resamples, at_least=0)
        require("ppo.settings.critic_warmup", self.critic_warmup, at_least=0)
        require("ppo.max_grad_norm", self.max_grad_norm, at_least=0)
        choices = {"aggregation": Aggregate, "baseline": Baseline, "kl_placement": Placement, "kl_estimator": Estimator}
        if self.correction is not None:
            choices["correction"] = Correction
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"ppo.settings.{name}={getattr(self, name)}: choose {', '.join(get_args(kind))}")

    def eos_penalty(self, *, learned: bool) -> float:
        """`missing_eos_penalty`, where it is None that of a scorer that is ``learned`` or not."""
        if self.missing_eos_penalty is None:
            return float(learned and not self.bootstrap_truncated)
        return self.missing_eos_penalty

    def weights(self, logprobs: Tensor, rollout: Rollout) -> Tensor | None:
        """Weights of the policy loss [B, T] or [B, 1] for ``logprobs`` [B, T] of training; None without `correction`.

        Raises:
            ConfigError: the engine kept no log-probabilities to compare with.
        """
        if self.correction is None:
            return None
        if rollout.rollout_logprobs is None:
            raise ConfigError(
                "ppo.settings.correction needs the log-probabilities of the engine, and this one keeps none; "
                "use rollout=loop"
            )
        return CORRECTIONS[self.correction](logprobs, rollout.rollout_logprobs, rollout.mask)

    def schedule(self, rollout: int, world_size: int) -> Schedule:
        """Sizes per rank for a rollout of ``rollout`` responses over ``world_size`` ranks.

        Raises:
            ConfigError: they do not divide; the message prints the whole chain.
        """
        per_rank = rollout // self.num_minibatches // world_size
        micro = max(min(self.micro_batch_size or per_rank, per_rank), 1)
        check_schedule(self, rollout, world_size)
        return Schedule(
            rows=rollout // world_size,
            minibatch=per_rank,
            micro=micro,
            micro_batches=-(-per_rank // micro),
            by_length=self.by_length,
        )
