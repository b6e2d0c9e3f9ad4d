"""What the stages of one run share: its config and folder, and how a Trainer is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning import signals
from rlhf_lightning.callbacks import DurableCheckpoint, History, ProgressLine, Samples, StopAtBoundary
from rlhf_lightning.callbacks.progress import why_early
from rlhf_lightning.checkpoint import read_provenance, verify_folder
from rlhf_lightning.checkpoint.io import DurableCheckpointIO
from rlhf_lightning.config.compose import config_text, redact, safe_instantiate
from rlhf_lightning.config.messages import as_config_error
from rlhf_lightning.config.stage_checks import check_callback, shards_weights
from rlhf_lightning.config.tree import walk
from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.labelling import SamplingModule
from rlhf_lightning.models import Pretrained
from rlhf_lightning.models.unread import weights_later
from rlhf_lightning.modules.base import RLHFModule
from rlhf_lightning.private_api.lightning import leave_signals_alone
from rlhf_lightning.rules.combinations import sampling_note
from rlhf_lightning.rules.stages import names
from rlhf_lightning.scoring import Scorer
from rlhf_lightning.stages.loggers import StageLoggers
from rlhf_lightning.stages.parents import Parents
from rlhf_lightning.stages.places import CHECKPOINTS, HISTORY
from rlhf_lightning.stages.resume import RunFolder
from rlhf_lightning.training.precision import HALF, HalfWeights


class Run:
    """A resolved config and the folder it writes to.

    Args:
        config: plain dict, as `rlhf_lightning.config.compose.compose` returns it.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.folder = Path(config["run_dir"])
        self.seed = int(config["seed"])
        self.files = RunFolder(config)
        self.loggers = StageLoggers(config, self.build)

    def prepare(self) -> None:
        """Make the task's files and model, if it has any to make: one node, or several under names.

        The first rank makes them, the others find them made.
        """
        task = self.config["task"] or {}
        if not self.is_first:
            self.wait()
        for node in [task] if "_target_" in task else task.values():
            self.build(node)
        if self.is_first:
            self.wait()

    @property
    def is_first(self) -> bool:
        """True in the process that writes the files of all ranks."""
        return rank_zero_only.rank == 0  # type: ignore[attr-defined]

    def wait(self) -> None:
        """Go on when every rank is here."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()

    def fit(
        self, stage: str, trainer: lightning.Trainer, module: RLHFModule, data: lightning.LightningDataModule
    ) -> None:
        """Train, from where `resume` says.

        Raises:
            CheckpointError: nothing is left to train.
            ConfigError: a callback ended it before the first step.
            NumericalError: no step has changed the model.
        """
        checkpoint = self.files.checkpoint(stage)
        watch = _StepCount(partial(self.files.begin, stage))
        trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        savers = [part for part in trainer.checkpoint_callbacks if isinstance(part, DurableCheckpoint)]
        with signals.grace_period(max((saver.grace_period_seconds for saver in savers), default=0.0)):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if not watch.steps:
            if checkpoint is None:
                raise ConfigError(f"{stage}: ended before its first step, so nothing is exported: {why_early(trainer)}")
            raise CheckpointError(
                f"{stage}: no step was left to train after {checkpoint}; its model was exported by that run, or raise "
                f"{stage}.max_epochs in a new one"
            )
        module.guard.require_learned(stage)
        self.loggers.curves = set(trainer.callback_metrics)

    def section(self, stage: str) -> Mapping[str, Any]:
        """The part of the config that belongs to a stage."""
        return self.config[stage]

    def sampling_note(self, policies: Iterable[str] = ()) -> str | None:
        """What to say where the stages of the run, and those that made the ``policies``, draw answers differently."""
        made = {record["stage"]: record["config"] for folder in policies if (record := read_provenance(folder))}
        return sampling_note(made | {name: self.section(name) for name in names(self.config["stages"])})

    def build(self, node: Any, key: str = "", /, **objects: Any) -> Any:
        """Instantiate a node, after the allowlist has seen it; ``key`` says where a copy stands in the config."""
        return safe_instantiate(node, key or self.key_of(node), trusted=self.config["trusted_targets"], **objects)

    def key_of(self, node: Any) -> str:
        """Where a node stands in the config, for messages; nothing if it is not a part of it as it is."""
        return next((entry.key for entry in walk(self.config) if entry.value is node), "")

    def scorer(self, node: Any) -> Any:
        """A scorer or judge for training; a reward model of a run that shards weights is read when it is sharded."""
        with weights_later() if shards_weights(self.config) else nullcontext():
            return self.build(node)

    def model(self, path: str, freeze_below: int | None = None) -> Pretrained:
        """The recipe of `model`, for another folder and, if given, another number of frozen layers."""
        changes = {"path": path} | ({} if freeze_below is None else {"freeze_below": freeze_below})
        return self.build({**self.config["model"], **changes}, "model")

    def title(self, stage: str, part: str = "") -> str:
        """What lines about a stage begin with: its place among all, its name, and which ``part`` of it."""
        every = names(self.config["stages"])
        place = f"[{every.index(stage) + 1}/{len(every)}]" if stage in every else ""
        return " ".join(filter(None, (place, stage, part)))

    def trainer(self, stage: str, callbacks: Sequence[Callback] = (), **limits: Any) -> lightning.Trainer:
        """A Trainer with the run's loggers and callbacks; ``limits`` are the stage's own arguments."""
        lightning.seed_everything(self.seed, verbose=False)
        surrounding = [self._callback(node) for node in self._callbacks()]
        for line in surrounding:
            if isinstance(line, ProgressLine):
                line.title = self.title(stage)
            if isinstance(line, Samples) and stage != "ppo":  # which samples as it says, and has a monitor
                line.sampling = self.build(self.config["sampling"])
                judge = self.config.get("judge") or {}
                line.judge = None if "model" in judge else self.build(judge or None)  # a model would need a place
        on_error = (self.config["checkpoint"] or {}).get("on_error", "raise")
        history = History(self.folder / HISTORY / f"{stage}.csv", on_error=on_error)
        # a guard sees what a monitor logs, the history what both log, and the saver knows of a signal
        every = [*callbacks, *surrounding, history, StopAtBoundary(), *self._saver(stage)]
        defaults = {
            "default_root_dir": self.folder,
            "logger": self.loggers.of(stage) or False,
            "callbacks": every,
            "enable_checkpointing": any(isinstance(part, Checkpoint) for part in every),
            "plugins": [DurableCheckpointIO(config_text(self.config))],
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
        }
        return self._trainer(defaults | limits)

    def _callbacks(self) -> list[dict[str, Any]]:
        """Nodes of the callbacks that surround every fit; one that is null is left out."""
        return [node for node in (self.config.get("callbacks") or {}).values() if node is not None]

    def _callback(self, node: Mapping[str, Any]) -> Callback:
        part: Callback = self.build(node)
        kinds = [base.__name__ for base in type(part).__mro__ if base.__module__.startswith("lightning.pytorch.")]
        check_callback(self.key_of(node), kinds)
        return part

    def predictor(self, title: str = "") -> lightning.Trainer:
        """A Trainer that only samples: no logger, and of the run's callbacks the progress line, if it has a title."""
        lightning.seed_everything(self.seed, verbose=False)
        silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
        wanted = title and self.config["trainer"].get("enable_progress_bar", True)
        nodes = self._callbacks() if wanted else ()
        lines = [self.build(node) for node in nodes if str(node["_target_"]).endswith(f".{ProgressLine.__name__}")]
        for line in lines:
            line.title = title
        return self._trainer({**silent, "enable_progress_bar": bool(lines), "callbacks": [*lines, StopAtBoundary()]})

    def sample(
        self,
        section: Mapping[str, Any],
        policy: str,
        scorers: Sequence[Scorer],
        samples: int,
        reference: str | None = None,
        title: str = "",
    ) -> list[dict[str, Any]]:
        """The records of ``samples`` answers to each prompt of a section's data, see `SamplingModule`."""
        module = SamplingModule(
            self.model(policy),
            scorers,
            reference=self.model(reference) if reference else None,
            engine=self.build(self.config["rollout"]),
            sampling=self.build(section["sampling"]),
            samples_per_prompt=samples,
            seed=section["seed"],
        )
        data = self.build(section["data"], tokenizer=module.tokenizer)
        self.predictor(title).predict(module, datamodule=data, return_predictions=False)
        return module.records

    def parents(self, paths: Mapping[str, str | Sequence[str] | None]) -> Parents:
        """What a stage is going to learn from; called before any of it is read. The first rank asks for all."""
        return Parents(paths if self.is_first else {})

    def provenance(self, stage: str, metrics: Mapping[str, Any], parents: Parents) -> dict[str, Any]:
        """What `provenance.json` of this stage says."""
        return {
            "stage": stage,
            "parents": parents.record(),
            "config": redact(dict(self.config))[stage],  # a secret of one section may stand in another
            "metrics": dict(metrics),
        }

    def _saver(self, stage: str) -> list[Checkpoint]:
        node = self.config["checkpoint"]
        return [self.build(node, folder=self.folder / CHECKPOINTS / stage)] if node else []

    def _trainer(self, arguments: dict[str, Any]) -> lightning.Trainer:
        given = dict(self.config["trainer"])
        target, strategy = given.pop("_target_"), given.pop("strategy", "auto")
        if given.get("precision") in HALF:
            arguments = {**arguments, "plugins": [*arguments.get("plugins", ()), HalfWeights(given.pop("precision"))]}
        if isinstance(strategy, Mapping):
            seconds = {"timeout": timedelta(seconds=strategy["timeout"])} if "timeout" in strategy else {}
            strategy = self.build(strategy, "trainer.strategy", **seconds)
        for name, value in given.items():
            if isinstance(value, (Mapping, list)):
                given[name] = self.build(value)  # a profiler, plugins
        for name in {"callbacks", "plugins"} & given.keys():
            given[name] = [*arguments.get(name, ()), *(given[name] or ())]
        with as_config_error(self.config["trainer"]):
            trainer: lightning.Trainer = self.build({"_target_": target}, strategy=strategy, **{**arguments, **given})
        leave_signals_alone(trainer)  # our handlers are there already
        return trainer


class _StepCount(Callback):
    """Counts the steps of one fit, and says when it begins, which is once its checkpoint is accepted."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin, self.steps = begin, 0

    def on_train_start(self, *given: Any) -> None:
        self.begin()

    def on_train_batch_start(self, *given: Any) -> None:
        self.steps += 1


def scalars(trainer: lightning.Trainer) -> dict[str, float]:
    """The last value of everything that was logged."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def verify_sources(files: str | Sequence[str]) -> None:
    """Check the folders that earlier stages wrote against their checksums; your own files pass."""
    for folder in {Path(file).parent for file in ([files] if isinstance(files, str) else files)}:
        if read_provenance(folder):
            verify_folder(folder)
