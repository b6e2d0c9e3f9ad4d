"""What the phases have in common: building models, one optimizer, logging, checkpoints, export."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import lightning
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.checkpoint.sharded import weights_mesh
from rlhf_lightning.data.loader import MICRO_BATCHES
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.metrics.shown import LIKELIHOOD, Shown
from rlhf_lightning.models import eos_token_ids
from rlhf_lightning.models.adapters import learned_state, merged, save_adapter
from rlhf_lightning.models.sharding import clip_gradients, full_state_dict, kept_shared, shard
from rlhf_lightning.models.unread import fill, weights_later
from rlhf_lightning.optim.adam import build_optimizer
from rlhf_lightning.optim.schedules import make_schedule
from rlhf_lightning.private_api.lightning import strategy_of, trainer_of, with_other_accumulation
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.rollout.hf import generation_config
from rlhf_lightning.rules.placement import FSDP1_REFUSED
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.training.precision import convert_weights, sharded_dtype, warn_of_half
from rlhf_lightning.training.random_state import random_state, restore_random_state, seed_after, seed_random_state
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.training.resume_checks import (
    BASE,
    base_weights,
    fingerprints,
    refuse_other_frozen,
    refuse_other_weights,
)
from rlhf_lightning.training.step_guard import Step, StepGuard

log = logging.getLogger(__name__)
OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[..., Any]


class RLHFModule(lightning.LightningModule):
    """Base of all phases.

    Models are built in `configure_model`, so that a sharding strategy can wrap them; plain models may be passed as
    well.

    Args:
        tokenizer: of the model in training; saved with every export.
        optimizer: called with parameter groups, for example ``partial(torch.optim.AdamW, lr=1e-5)``.
        scheduler: see `rlhf_lightning.optim.schedules.make_schedule`; None keeps the learning rate.
        max_grad_norm: clip the gradient norm of each parameter group to this; 0 does not clip.
        max_skipped_steps: end the run when so many steps in a row, at least 1, had numbers that were not finite.
    """

    stage = "train"  # name of the phase in configs and messages, set by each phase
    trains: str  # attribute name of the model in training, set by each phase
    shown: ClassVar[Shown] = LIKELIHOOD  # what a progress line tells, see `rlhf_lightning.metrics.shown`
    sampling: Sampling | None = None  # how an exported policy answers, see `_save`; None leaves what the model says

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        max_grad_norm: float,
        max_skipped_steps: int,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        require(f"{self.stage}.max_grad_norm", max_grad_norm, at_least=0)
        self.max_grad_norm = max_grad_norm
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._grad_norm = torch.zeros(())
        self._group_norms: dict[str, Tensor] = {}
        self.learning_rate = 0.0  # of the last step, in the first parameter group
        self._restored: Mapping[str, Any] | None = None
        self.guard = StepGuard(max_skipped_steps, self.stage)

    def build(self) -> None:
        """Create the models; called once, before sharding. Each phase implements it."""
        raise NotImplementedError

    def sharded_modules(self) -> list[nn.Module]:
        """The registered models, in the order they are sharded."""
        return [self.trained]

    @property
    def trained(self) -> nn.Module:
        """The model this phase trains and exports."""
        return getattr(self, self.trains)

    def configure_model(self) -> None:
        """Build once; under FSDP2 shard what is trained."""
        if getattr(self, self.trains, None) is not None:
            return
        if isinstance(strategy_of(self), FSDPStrategy):
            raise ConfigError(FSDP1_REFUSED)
        mesh = weights_mesh(strategy_of(self))
        with nullcontext() if mesh is None else weights_later():
            self.build()
        convert_weights(self, strategy_of(self))
        warn_of_half(self.trained, self.stage)
        if mesh is not None:
            models = self.sharded_modules()
            with kept_shared(models):
                for model in models:
                    shard(model, mesh, sharded_dtype(strategy_of(self)))
                    fill(model)

    def configure_optimizers(self) -> Any:
        """One optimizer with named parameter groups; the schedule spans the whole run."""
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = build_optimizer(self._optimizer, self.parameter_groups(), scaled=scaled)
        if self._scheduler is None:
            return optimizer
        scheduler = make_schedule(self._scheduler, optimizer, self.total_optimizer_steps(), f"{self.stage}.scheduler")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, each with a ``name``."""
        return [{"name": self.trains, "params": [p for p in self.trained.parameters() if p.requires_grad]}]

    def total_optimizer_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return max(int(self.trainer.estimated_stepping_batches), 1)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip each parameter group, after a loss scaler has unscaled the gradients, so not before the step."""
        self.learning_rate = optimizer.param_groups[0]["lr"]
        groups = {
            str(group.get("name", number)): group["params"] for number, group in enumerate(optimizer.param_groups)
        }
        self._group_norms = {name: clip_gradients(params, self.max_grad_norm) for name, params in groups.items()}
        self._grad_norm = torch.stack(list(self._group_norms.values())).norm()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if not self.guard.check(self._grad_norm, self.step, scaler):
            optimizer.zero_grad()  # without gradients it changes neither weights nor its own state

    @property
    def step_number(self) -> int:
        """The step at hand, as checkpoints count them; the first is 1."""
        return self.trainer.global_step + 1

    @property
    def step(self) -> Step:
        """The step at hand."""
        trainer = trainer_of(self)
        number, folder = (0, "") if trainer is None else (self.step_number, trainer.default_root_dir)
        return Step(number, self.ranks, self.named_parameters, Path(folder))

    def on_train_start(self) -> None:
        """Train mode (`from_pretrained` returns models in eval mode), and random numbers where a checkpoint left them.

        Iterators made between loading and now draw random numbers, so this is the first moment for it.
        """
        self.trained.train()
        if self._restored is not None:
            state, self._restored = self._restored, None
            self.guard.load_state_dict(state.get("guard", {}))
            self.load_progress(state)
            ranks, number, size = state["ranks"], self.global_rank, self.ranks.size
            if len(ranks) == size:
                self.load_rank_state(ranks[number])
            else:
                log.warning(
                    "%s: written by %d processes and resumed by %d: the same rows in the same order, and new random "
                    "streams", self.stage, len(ranks), size,
                )  # fmt: skip
                self.seed_rank_state(ranks[0], seed_after(ranks[0], number, size))

    def progress(self) -> dict[str, Any]:
        """Plain state of the whole run for its checkpoint, beside weights and optimizer."""
        return {}

    def load_progress(self, state: Mapping[str, Any]) -> None:
        """Restore `progress`."""

    def rank_state(self) -> dict[str, Any]:
        """Plain state of this rank for the checkpoint: the global random streams that dropout and others draw from."""
        return random_state(self.device)

    def load_rank_state(self, state: Mapping[str, Any]) -> None:
        """Restore `rank_state`."""
        restore_random_state(state, self.device)

    def seed_rank_state(self, first: Mapping[str, Any], seed: int) -> None:
        """In place of `load_rank_state` where another number of processes goes on; each has a ``seed`` of its own.

        ``first`` is the `rank_state` of the first process that there was.
        """
        seed_random_state(seed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """`progress`, and `rank_state` of every rank, under ``rlhf``; no weights that lie below adapters.

        Raises:
            NumericalError: a weight is broken.
        """
        self.guard.require_weights(self.step, "not saved")
        ranks = self.ranks.gather_objects(self.rank_state())
        own = {"guard": self.guard.state_dict(), "frozen": fingerprints(self), **self.progress(), "ranks": ranks}
        learned = learned_state(self)
        checkpoint["state_dict"] = {name: w for name, w in checkpoint["state_dict"].items() if name in learned}
        checkpoint["rlhf"] = {"schema": 1, "phase": type(self).__name__} | own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state until training starts.

        Raises:
            ConfigError: the checkpoint is of another phase or of another library.
            CheckpointError: it is of a model with other weights, or its reference was another one.
        """
        state = checkpoint.get("rlhf") or {}
        if state.get("phase") != type(self).__name__:
            raise ConfigError(
                f"this checkpoint was written by {state.get('phase', 'another library')}, not by "
                f"{type(self).__name__}; give the right one"
            )
        refuse_other_frozen(state.get("frozen", {}), self)
        if BASE in state.get("frozen", {}):
            checkpoint["state_dict"] = base_weights(self) | checkpoint["state_dict"]
        refuse_other_weights(checkpoint.get("state_dict"), self)
        self._cut_otherwise(checkpoint)
        self._restored = state

    def _cut_otherwise(self, checkpoint: dict[str, Any]) -> None:
        """Have the data go on behind the same rows, though other processes or micro-batches cut a step otherwise."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        at = checkpoint.get(type(data).__qualname__) or {}
        if not (before := at.get(MICRO_BATCHES)) or at["position"] % before:  # refused by the data
            return
        if (now := data.accumulate) != before:
            at |= {"position": at["position"] // before * now, MICRO_BATCHES: now}
            with_other_accumulation(checkpoint["loops"]["fit_loop"], before, now)

    @property
    def ranks(self) -> Ranks:
        """The processes that train together; one without a trainer."""
        return Ranks(strategy_of(self), self.device)

    def export(self, folder: str | Path, provenance: Mapping[str, Any]) -> Path:
        """Write the trained model as a Hugging Face folder with tokenizer and provenance. Call on every rank.

        Adapters are merged into its weights; alone they are in its folder ``adapter``, in peft's format.

        Args:
            folder: where to; replaced whole if it exists.
            provenance: plain data for `provenance.json`; see `rlhf_lightning.checkpoint.write_folder`.

        Raises:
            NumericalError: a weight is not finite; nothing is written.
        """
        self.guard.require_weights(self.step, f"not exported to {folder}")
        weights = full_state_dict(self.export_model())
        if self.ranks.index == 0:
            write_folder(folder, lambda path: self._save(path, weights), provenance)
        self.ranks.wait()
        return Path(folder)

    def export_model(self) -> PreTrainedModel:
        """The transformers model inside `trained`."""
        return self.trained  # type: ignore[return-value]

    def _save(self, path: Path, weights: dict[str, Tensor]) -> None:
        """Model, adapters and tokenizer; ``generation_config.json`` has the sampling that the policy learned with."""
        model = self.export_model()
        if self.sampling is not None:
            ends = eos_token_ids(model, self.tokenizer)
            model.generation_config = generation_config(self.sampling, ends, self.tokenizer.pad_token_id)
            model.generation_config.stop_strings = list(self.sampling.stop) or None
        model.save_pretrained(path, state_dict=merged(model, weights))
        save_adapter(model, weights, path / "adapter")
        self.tokenizer.save_pretrained(path)
