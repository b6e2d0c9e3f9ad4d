"""What TensorBoard shows beyond single curves: charts that belong together, distributions, and samples to read."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from rlhf_lightning.callbacks.samples import step_of
from rlhf_lightning.callbacks.steps import NewNumbers, gave_up, steps_done
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.loggers.files import CurvesOver, resume_at
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import Experience

Layout = dict[str, dict[str, list[Any]]]

# What matters first comes first. A tag that ends in a slash stands for all that begin with it.
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "PPO: score and KL": {
        "score and judge": ("objective/scores", "monitor/"),
        "reward against its KL penalty": ("objective/scores", "objective/rlhf_reward", "objective/non_score_reward"),
        "KL against its target (nats per response)": ("objective/kl", "objective/kl_target"),
        "beta": ("objective/kl_coef",),
    },
    "PPO: update": {
        "importance ratio": ("val/ratio",),
        "clip fractions": ("policy/clipfrac_avg", "val/clipfrac_avg"),
        "step size (approximate KL, nats per token)": ("policy/approxkl_avg",),
        "entropy (nats per token)": ("policy/entropy_avg",),
        "entropy (nats per response)": ("objective/entropy",),
        "losses": ("loss/policy_avg", "loss/value_avg"),
        "critic: explained variance": ("val/var_explained",),
    },
    "PPO: responses": {
        "length (tokens)": ("completions/mean_length",),
        "ended by themselves": ("completions/eos_rate",),
        "diversity and repetition": ("completions/distinct_1", "completions/distinct_2", "completions/repetition_3"),
    },
    "PPO: time": {
        "seconds by phase": tuple(f"perf/seconds_{phase}" for phase in ("generate", "score", "evaluate", "learn")),
    },
    "Supervised": {
        "loss (nats per token)": ("train/loss", "val/loss"),
        "perplexity": ("train/perplexity", "val/perplexity"),
    },
    "Reward model": {
        "loss (nats per comparison)": ("train/loss", "val/loss"),
        "pairwise accuracy": ("train/accuracy", "val/accuracy"),
        "margin of the preferred answer": ("train/margin", "val/margin"),
        "calibration error": ("val/ece",),
    },
}
COUNTS: tuple[Literal["episodes"], Literal["tokens"]] = ("episodes", "tokens")
OVER_COUNTS = (
    "objective/scores", "monitor/", "guard/gold", "objective/rlhf_reward", "objective/kl", "completions/mean_length",
)  # fmt: skip
"""What is drawn over counts, too."""
_MARKS = {"PPO": "objective/scores", "Supervised": "train/perplexity", "Reward model": "train/accuracy"}


class TensorBoardExtras(pl.Callback):
    """A curated "Custom scalars" page, histograms, and curves over other counts; nothing without a TensorBoard logger.

    A fit that resumes takes back the steps after its checkpoint that an earlier process has logged to the same folder.

    Histograms come from ``pl_module.last_experience`` (an `Experience` or None); a module without one gets the charts
    only. Only rank 0 writes, from its own share of the rollout.

    Curves over what a module counts, as ``pl_module.episodes``, are those of `OVER_COUNTS` that the step has logged
    before the callback looked. `CurvesOver` says where they are.

    Args:
        every_n_rollouts: histograms are written each so many rollouts, beginning with the first.
        axes: what curves are drawn over besides the step, for modules that count it: ``episodes`` (responses) and
            ``tokens`` (of responses), of all ranks; empty draws none.

    Raises:
        ConfigError: the first is below 1, or nothing is called as ``axes`` says.
    """

    def __init__(self, every_n_rollouts: int = 10, axes: Sequence[Literal["episodes", "tokens"]] = COUNTS) -> None:
        require("every_n_rollouts", every_n_rollouts, at_least=1)
        if isinstance(axes, str) or not all(axis in COUNTS for axis in axes):
            raise ConfigError(f"axes={axes}: choose from {list(COUNTS)}; [] is the step alone")
        self.every_n_rollouts = every_n_rollouts
        self.axes = axes
        self._laid_out = False
        self._new = NewNumbers()
        self._over: dict[str, CurvesOver] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._laid_out, self._new = False, NewNumbers()
        logger = _logger(trainer)
        if logger is not None:  # readers drop what an earlier process wrote of the steps that are done again
            resume_at(logger.experiment, steps_done(trainer))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Open what is drawn over counts, which modules restore after `on_train_start`."""
        logger = _logger(trainer)
        if logger is not None and not self._over:
            counted = {axis: getattr(pl_module, axis) for axis in self.axes if hasattr(pl_module, axis)}
            self._over = {axis: CurvesOver(logger, axis, count) for axis, count in counted.items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close it."""
        for curves in self._over.values():
            curves.close()
        self._over = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """As at the end."""
        self.on_train_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        logged = self._new.look(trainer)
        logger = _logger(trainer)
        if logger is None:
            return
        writer: Any = logger.experiment
        if not gave_up(pl_module):
            drawn = {tag: number for tag, number in logged.items() if any(re.match(p, tag) for p in _DRAWN)}
            for axis, curves in self._over.items():
                curves.add(drawn, getattr(pl_module, axis))
        layout = {} if self._laid_out else chart_layout(trainer.callback_metrics)
        if layout:
            writer.add_custom_scalars(layout)
            self._laid_out = True
        experience = getattr(pl_module, "last_experience", None)
        rollout = steps_done(trainer)
        if experience is None or gave_up(pl_module) or (rollout - 1) % self.every_n_rollouts:
            return
        step = step_of(trainer, rollout - 1)
        for tag, values in distributions(experience).items():
            if values.numel():
                writer.add_histogram(tag, values.float().cpu(), step)


def chart_layout(tags: Collection[str]) -> Layout:
    """Custom-scalar layout for the stage that logs ``tags``, in the form ``SummaryWriter.add_custom_scalars`` takes."""
    layout: Layout = {}
    for category, charts in CHARTS.items():
        if _MARKS[category.split(":")[0]] in tags:
            layout[category] = {title: ["Multiline", list(map(_pattern, chart))] for title, chart in charts.items()}
    return layout


def _pattern(tag: str) -> str:
    """The regular expression for a tag: TensorBoard draws every curve that begins with a match."""
    return f"^{re.escape(tag)}" + ("" if tag.endswith("/") else "$")


_DRAWN = tuple(map(_pattern, OVER_COUNTS))


def distributions(experience: Experience) -> dict[str, Tensor]:
    """Flat tensors to draw histograms of: per response, or per token that counts; ratios as their logarithm, nats."""
    mask = experience.mask
    log_ratio = torch.where(mask, experience.logprobs - experience.ref_logprobs, 0.0)
    found = {
        "responses/score": experience.scores,
        "responses/length_tokens": experience.rollout.lengths,
        "responses/kl_nats": log_ratio.sum(1),
        "tokens/advantage": experience.advantages[mask],
        "tokens/log_ratio_policy_to_reference": log_ratio[mask],
    }
    sampled = experience.rollout.rollout_logprobs
    if sampled is not None:
        found["tokens/log_ratio_training_to_engine"] = (experience.logprobs - sampled)[mask]
    return {tag: values[torch.isfinite(values)] for tag, values in found.items()}


def _logger(trainer: pl.Trainer) -> TensorBoardLogger | None:
    """That of TensorBoard, on rank 0."""
    found = (logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))
    return next(found, None) if trainer.is_global_zero else None
