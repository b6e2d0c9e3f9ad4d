"""What TensorBoard shows beyond single curves: charts that belong together, distributions, and samples to read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor

from rlhf_lightning.callbacks.steps import gave_up, steps_done
from rlhf_lightning.console.display import markdown
from rlhf_lightning.models.tokens import decode
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import Experience

Layout = dict[str, dict[str, list[Any]]]

CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "PPO: reward and KL": {
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
    """A curated "Custom scalars" page, histograms and a table of samples; does nothing without a TensorBoard logger.

    A fit that resumes takes back the steps after its checkpoint that an earlier process has logged to the same folder.

    Histograms and samples come from ``pl_module.last_experience`` (an `Experience` or None), the text from
    ``pl_module.tokenizer``; a module without them gets the charts only. Only rank 0 writes, from its own share of the
    rollout.

    Args:
        every_n_rollouts: histograms and samples are written each so many rollouts, beginning with the first.
        samples: rows of the sample table; spread evenly from the lowest to the highest score.
        max_characters: longer prompts lose their beginning and longer responses their end, in the table only.

    Raises:
        ConfigError: an argument is below 1.
    """

    def __init__(self, every_n_rollouts: int = 10, samples: int = 8, max_characters: int = 600) -> None:
        require("every_n_rollouts", every_n_rollouts, at_least=1)
        require("samples", samples, at_least=1)
        require("max_characters", max_characters, at_least=1)
        self.every_n_rollouts = every_n_rollouts
        self.samples = samples
        self.max_characters = max_characters
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
        # Lightning puts the scalars of the first rollout at step 0 unless the module logs `step`
        step = int(trainer.callback_metrics.get("step", rollout - 1))
        for tag, values in distributions(experience).items():
            if values.numel():
                writer.add_histogram(tag, values.float().cpu(), step)
        tokenizer = getattr(pl_module, "tokenizer", None)
        if tokenizer is not None:
            table = sample_table(experience, tokenizer, self.samples, self.max_characters)
            writer.add_text("samples", table, step)


def chart_layout(tags: Collection[str]) -> Layout:
    """Custom-scalar layout for the stage that logs ``tags``, in the form ``SummaryWriter.add_custom_scalars`` takes."""
    layout: Layout = {}
    for category, charts in CHARTS.items():
        if _MARKS[category.split(":")[0]] in tags:
            layout[category] = {title: ["Multiline", list(chart)] for title, chart in charts.items()}
    return layout


def distributions(experience: Experience) -> dict[str, Tensor]:
    """Flat tensors to draw histograms of: per response, or per token that counts."""
    mask = experience.mask
    log_ratio = torch.where(mask, experience.logprobs - experience.ref_logprobs, 0.0)
    found = {
        "responses/score": experience.scores,
        "responses/length_tokens": experience.rollout.lengths,
        "responses/kl_nats": log_ratio.sum(1),
        "tokens/advantage": experience.advantages[mask],
        "tokens/ratio_policy_to_reference": log_ratio[mask].exp(),
    }
    sampled = experience.rollout.rollout_logprobs
    if sampled is not None:
        found["tokens/ratio_training_to_engine"] = (experience.logprobs - sampled)[mask].exp()
    return {tag: values[torch.isfinite(values)] for tag, values in found.items()}


def sample_table(experience: Experience, tokenizer: Any, samples: int, max_characters: int) -> str:
    """Markdown table of prompts, responses, scores and KL, lowest score first."""
    rollout = experience.rollout
    kl = torch.where(experience.mask, experience.logprobs - experience.ref_logprobs, 0.0).sum(1)
    order = experience.scores.argsort().tolist()
    count = min(samples, len(order))
    chosen = [order[round(i * (len(order) - 1) / max(count - 1, 1))] for i in range(count)]
    lines = ["| score | KL (nats) | tokens | prompt | response |", "| ---: | ---: | ---: | --- | --- |"]
    for row in chosen:
        asked = rollout.prompt_ids[row][rollout.prompt_mask[row]].tolist()
        answered = rollout.response_ids[row][rollout.attended[row]].tolist()
        prompt, response = decode(tokenizer, [asked, answered])
        prompt = prompt if len(prompt) <= max_characters else "..." + prompt[-max_characters:]
        response = response if len(response) <= max_characters else response[:max_characters] + "..."
        ending = "" if rollout.finished[row] else " *(truncated)*"
        numbers = f"{experience.scores[row]:.3f} | {kl[row]:.2f} | {int(rollout.lengths[row])}"
        shown = markdown(prompt, newline="<br>"), markdown(response, newline="<br>")
        lines.append(f"| {numbers} | {shown[0] or ' '} | {shown[1] or ' '}{ending} |")
    return "\n".join(lines)


def _writer(trainer: pl.Trainer) -> Any:
    if not trainer.is_global_zero:
        return None
    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
