"""The machinery around the algorithm: updates in micro-batches over ranks, counters, logging, resume.

Everything persistent changes between the fetch of a batch and the end of `training_step`; checkpoints fall on that
boundary, so a rollout is never saved. Lightning's manual optimisation leaves accumulation, clipping and the schedule
to us.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError, NumericalError
from rlhf_lightning.functional.masking import Moments, masked_moments, masked_sum, merge_moments, whiten_with
from rlhf_lightning.functional.ppo import PolicyLoss, ValueLoss
from rlhf_lightning.kl_control import KLController
from rlhf_lightning.models import FrozenModels
from rlhf_lightning.modules.base import OptimizerFactory, RLHFModule, SchedulerFactory
from rlhf_lightning.modules.settings import PPOSettings, Schedule
from rlhf_lightning.rollout import RolloutEngine, rank_seed
from rlhf_lightning.scoring import Scorer
from rlhf_lightning.types import Experience


class Forward(NamedTuple):
    """What the policy and critic in training say about each response token."""

    logprobs: Tensor  # [B, T]
    values: Tensor  # [B, T]
    entropy: Tensor  # [B, T], nats, no grad


class OnlineModule(RLHFModule):
    """Base of modules whose `training_step` samples its own data and takes several optimizer steps."""

    engine: RolloutEngine
    scorer: Scorer
    kl_controller: KLController
    frozen: FrozenModels

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        settings: PPOSettings,
    ) -> None:
        super().__init__(tokenizer, optimizer, scheduler, settings.max_grad_norm)
        self.automatic_optimization = False
        self.settings = settings
        self.rollouts = self.optimizer_steps = self.episodes = self.tokens = 0
        self.last_experience: Experience | None = None
        self._order = torch.Generator().manual_seed(settings.seed)
        self._seconds: dict[str, float] = {}
        self._restored: dict[str, Any] | None = None

    def loss(self, batch: Experience, denominator: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch; each algorithm implements it."""
        raise NotImplementedError

    def total_optimizer_steps(self) -> int:
        """Rollouts times updates per rollout."""
        batches = int(self.trainer.estimated_stepping_batches)
        data = getattr(self.trainer, "datamodule", None)
        loader: Any = self.trainer.train_dataloader
        rollout = loader.batch_size * self.world_size if data is None else data.batch_size
        return max(batches * self.settings.ppo_epochs * (rollout // (self.settings.minibatch_size or rollout)), 1)

    def schedule(self, rows: int) -> Schedule:
        """Sizes per rank for a rollout of ``rows`` responses on this rank."""
        return self.settings.schedule(rows * self.world_size, self.world_size)

    def learn(self, experience: Experience) -> dict[str, float]:
        """Epochs x minibatches of optimizer steps; stops early where the policy has moved too far."""
        totals: dict[str, Tensor] = {}
        rows = len(experience.rollout)
        schedule = self.schedule(rows)
        steps = 0
        for order in self._orders(rows):
            for minibatch in order.split(schedule.minibatch):
                if not self._update(experience.select(minibatch), schedule.micro, totals):
                    return self._summary(totals, steps, experience)
                steps += 1
        return self._summary(totals, steps, experience)

    def _orders(self, rows: int) -> Iterator[Tensor]:
        """The order of rows in each pass. The first keeps the loader's, in which `evaluate` ran."""
        yield torch.arange(rows)
        for _ in range(self.settings.ppo_epochs - 1):
            yield torch.randperm(rows, generator=self._order)

    def _update(self, minibatch: Experience, micro: int, totals: dict[str, Tensor]) -> bool:
        """One optimizer step on a minibatch; False, and no step, once KL(old || new) exceeds its limit."""
        optimizer: Any = self.optimizers()
        denominator = self.reduce_sum(minibatch.mask.sum().double()).float()
        micro_batches = torch.arange(len(minibatch.rollout)).split(micro)
        sums: dict[str, Tensor] = {}
        for number, rows in enumerate(micro_batches):
            with self._accumulating(last=number == len(micro_batches) - 1):
                loss, stats = self.loss(minibatch.select(rows), denominator)
                self.manual_backward(loss * self.world_size)  # ranks are averaged, and the denominator is global
            _add(sums, stats | {"loss": loss.detach()})
        loss_sum, approx_kl = self.sum_over_ranks(sums["loss"], sums["approxkl"])
        if not _finite(loss_sum):
            raise NumericalError(
                f"rollout {self.rollouts}: the loss is {loss_sum}; lower ppo.optimizer.lr or set "
                "ppo.settings.max_grad_norm"
            )
        limit = self.settings.max_approx_kl
        if limit is not None and approx_kl / float(denominator) > limit:
            optimizer.zero_grad()
            return False
        optimizer.step()
        optimizer.zero_grad()
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
        self.optimizer_steps += 1
        _add(totals, sums | {"grad_norm": self._grad_norm})
        return True

    @contextmanager
    def _accumulating(self, last: bool) -> Iterator[None]:
        """Leave gradients on their rank until the last micro-batch."""
        strategy = self._strategy()
        sharded = [m for m in self.children() if isinstance(m, FSDPModule)]
        for module in sharded:
            module.set_requires_gradient_sync(last)
        block = getattr(strategy, "block_backward_sync", None)
        with nullcontext() if last or sharded or block is None else block():
            yield

    def statistics(
        self, policy: PolicyLoss, value: ValueLoss, entropy: Tensor, mask: Tensor, denominator: Tensor
    ) -> dict[str, Tensor]:
        """Sums over the tokens of a micro-batch, to be divided by all tokens that were learned from."""
        count = policy.count
        return {
            "tokens": count,
            "policy_loss": policy.loss.detach() * denominator,
            "value_loss": value.loss.detach() * denominator,
            "approxkl": policy.approx_kl * count,
            "clipfrac": policy.clip_fraction * count,
            "value_clipfrac": value.clip_fraction * count,
            "entropy": masked_sum(entropy, mask),
            "ratio": policy.ratio_mean * count,
            "ratio_square": (policy.ratio_var + policy.ratio_mean**2) * count,
        }

    def _summary(self, totals: Mapping[str, Tensor], steps: int, experience: Experience) -> dict[str, float]:
        if not totals:
            return {"policy/updates": 0.0}
        names = sorted(totals)
        sums = dict(zip(names, self.sum_over_ranks(*(totals[n] for n in names)), strict=True))
        mean = {n: v / max(sums["tokens"], 1.0) for n, v in sums.items()}
        unexplained = self.moments(experience.returns - experience.values, experience.mask).var
        variance = self.moments(experience.returns, experience.mask).var
        return {
            "loss/policy_avg": mean["policy_loss"],
            "loss/value_avg": mean["value_loss"],
            "policy/approxkl_avg": mean["approxkl"],
            "policy/clipfrac_avg": mean["clipfrac"],
            "policy/entropy_avg": mean["entropy"],
            "policy/grad_norm": sums["grad_norm"] / self.world_size / steps,
            "policy/updates": float(steps),
            "val/ratio": mean["ratio"],
            "val/ratio_var": max(mean["ratio_square"] - mean["ratio"] ** 2, 0.0),
            "val/clipfrac_avg": mean["value_clipfrac"],
            "val/var_explained": float(1 - unexplained / variance) if variance > 0 else 0.0,
            "train/learning_rate": self.learning_rate,
        }

    def moments(self, x: Tensor, mask: Tensor) -> Moments:
        """Count, mean and variance of ``x`` [B, T] over the tokens of all ranks."""
        local = torch.stack([m.double() for m in masked_moments(x, mask)])
        ranks = torch.zeros(self.world_size, 3, dtype=torch.float64, device=local.device)
        ranks[self.global_rank] = local
        return merge_moments(*self.reduce_sum(ranks).unbind(1))

    def whiten(self, x: Tensor, mask: Tensor) -> Tensor:
        """Zero mean and unit variance over the tokens of all ranks, [B, T]."""
        moments = self.moments(x, mask)
        return whiten_with(x, mask, moments.mean.to(x.dtype), moments.var.to(x.dtype))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the iteration."""
        start = time.perf_counter()
        yield
        self._seconds[f"perf/seconds_{name}"] = time.perf_counter() - start

    def finish(self, experience: Experience, metrics: Mapping[str, float]) -> None:
        """Count, keep the experience for the callbacks, and log once."""
        tokens = int(metrics["tokens"])
        self.rollouts += 1
        self.episodes += int(metrics["episodes"])
        self.tokens += tokens
        self.last_experience = experience
        total = sum(self._seconds.values())
        counters = {"episode": float(self.episodes), "perf/tokens_per_second": tokens / max(total, 1e-9)}
        shown = {name: value for name, value in metrics.items() if name not in ("episodes", "tokens")}
        self.log_dict(shown | counters | self._seconds)

    def on_fit_start(self) -> None:
        """Move what Lightning does not see, and give every rank its own random stream."""
        self.frozen.to(self.device)
        self.scorer.to(self.device)
        self.engine.seed(rank_seed(self.settings.seed, self.global_rank))

    def on_train_start(self) -> None:
        """Train mode, and random streams where the checkpoint left them."""
        for module in self.children():
            module.train()
        if self._restored is not None:
            self._restore(self._restored)
            self._restored = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counters, KL controller and the random streams of every rank, under the key ``rlhf``."""
        local = {"engine": self.engine.state_dict(), "order": self._order.get_state()}
        ranks: list[Any] = [local]
        if self.world_size > 1:
            ranks = [None] * self.world_size
            torch.distributed.all_gather_object(ranks, local)
        counters = {name: getattr(self, name) for name in ("rollouts", "optimizer_steps", "episodes", "tokens")}
        kl = self.kl_controller.state_dict()
        checkpoint["rlhf"] = {"schema": 1, **counters, "kl": kl, "ranks": ranks}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state until training starts; iterators created in between draw random numbers."""
        if "rlhf" not in checkpoint:
            raise ConfigError("this checkpoint was not written by a PPO run of this library; give the right ckpt_path")
        self._restored = checkpoint["rlhf"]

    def _restore(self, state: dict[str, Any]) -> None:
        for name in ("rollouts", "optimizer_steps", "episodes", "tokens"):
            setattr(self, name, state[name])
        self.kl_controller.load_state_dict(state["kl"])
        if len(state["ranks"]) == self.world_size:
            local = state["ranks"][self.global_rank]
            self.engine.load_state_dict(local["engine"])
            self._order.set_state(local["order"])


def _add(totals: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    for name, value in sums.items():
        totals[name] = totals.get(name, 0) + value.detach().double()


def _finite(number: float) -> bool:
    return number == number and abs(number) != float("inf")
