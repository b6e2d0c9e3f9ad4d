"""What TensorBoard shows beyond single curves: charts that belong together, distributions, and samples to read."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor

from rlhf_lightning.callbacks.samples import step_of
from rlhf_lightning.callbacks.steps import gave_up, steps_done
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
_MARKS = {"PPO": "objective/scores", "Supervised": "train/perplexity", "Reward model": "train/accuracy"}


class TensorBoardExtras(pl.Callback):
    """A curated "Custom scalars" page and histograms; does nothing without a TensorBoard logger.

    A fit that resumes takes back the steps after its checkpoint that an earlier process has logged to the same folder.

    Histograms come from ``pl_module.last_experience`` (an `Experience` or None); a module without one gets the charts
    only. Only rank 0 writes, from its own share of the rollout.

    Args:
        every_n_rollouts: histograms are written each so many rollouts, beginning with the first.

    Raises:
        ConfigError: it is below 1.
    """

    def __init__(self, every_n_rollouts: int = 10) -> None:
        require("every_n_rollouts", every_n_rollouts, at_least=1)
        self.every_n_rollouts = every_n_rollouts
        self._laid_out = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._laid_out = False
        writer = _writer(trainer)
        if writer is not None:  # readers drop what an earlier process wrote of the steps that are done again
            start = SessionLog(status=SessionLog.START)
            writer.file_writer.add_event(Event(step=steps_done(trainer), session_log=start))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        writer = _writer(trainer)
        if writer is None:
            return
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


def _writer(trainer: pl.Trainer) -> Any:
    if not trainer.is_global_zero:
        return None
    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
