"""The numbers of PPO, checked before any model loads."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.errors import ConfigError


@dataclass(frozen=True)
class PPOSettings:
    """How one rollout is shaped and learned from. Batch sizes count responses over all ranks.

    Args:
        ppo_epochs: passes over each rollout.
        minibatch_size: responses per optimizer step; None takes the whole rollout.
        micro_batch_size: responses per forward on one rank; None takes the rank's whole minibatch. Changes memory,
            never gradients.
        max_approx_kl: stop the updates of a rollout once KL(old || new) exceeds this, nats per token; None never stops.
        value_coef: weight of the value loss.
        value_clip_range: half-width of the trust region around the old value.
        score_clip: clip scores to plus or minus this before the KL price; None does not clip.
        missing_eos_penalty: subtracted from the score of an answer that was cut off.
        whiten_advantages: zero mean and unit variance over all tokens of the rollout, on all ranks.
        critic_warmup: rollouts during which only the critic learns.
        max_grad_norm: clip the global gradient norm to this; 0 does not clip.
        seed: of sampling and of the minibatch order.
    """

    ppo_epochs: int = 4
    minibatch_size: int | None = None
    micro_batch_size: int | None = None
    max_approx_kl: float | None = 0.1
    value_coef: float = 0.1
    value_clip_range: float = 0.2
    score_clip: float | None = None
    missing_eos_penalty: float = 1.0
    whiten_advantages: bool = True
    critic_warmup: int = 0
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ppo_epochs < 1:
            raise ConfigError(f"ppo.settings.ppo_epochs={self.ppo_epochs}: at least one pass is needed")
        for name in ("max_approx_kl", "score_clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"ppo.settings.{name}={value}: must be above 0, or null to switch it off")

    def schedule(self, rollout: int, world_size: int) -> Schedule:
        """Sizes per rank for a rollout of ``rollout`` responses over ``world_size`` ranks.

        Raises:
            ConfigError: they do not divide; the message prints the whole chain.
        """
        minibatch = self.minibatch_size or rollout
        per_rank = minibatch // world_size
        micro = self.micro_batch_size or per_rank
        if rollout % minibatch or minibatch % world_size or per_rank % micro:
            raise ConfigError(
                f"rollout of {rollout} responses -> minibatches of {minibatch} -> {world_size} rank(s) -> "
                f"micro-batches of {micro}: each must divide the one before; change "
                "ppo.data.batch_size, ppo.settings.minibatch_size or ppo.settings.micro_batch_size"
            )
        return Schedule(rows=rollout // world_size, minibatch=per_rank, micro=micro)


@dataclass(frozen=True)
class Schedule:
    """Responses on one rank: of a rollout, of a minibatch, of a micro-batch."""

    rows: int
    minibatch: int
    micro: int
