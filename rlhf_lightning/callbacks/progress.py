"""One compact line that tells how training goes: live on a terminal, now and then in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.live import Live
from rich.text import Text

from rlhf_lightning.callbacks.steps import logged_scalars, steps_done, steps_planned

PHASES = {"generate": "gen", "score": "score", "evaluate": "eval", "learn": "learn"}
Metrics = Mapping[str, float]


class ProgressLine(ProgressBar):
    """Replaces Lightning's progress bar by one line per fit; what it shows follows from the tags the module logs.

    On a terminal the line is redrawn in place. Elsewhere a plain line is printed each ``every_percent`` of the way and
    at least each ``every_seconds``, so that log files stay readable. A summary line stays at the end. Only rank 0
    prints.
    The Trainer must keep ``enable_progress_bar=True`` (Lightning refuses any bar otherwise).

    Args:
        every_seconds: longest silence in a log file, s.
        every_percent: share of the fit between two lines in a log file, percent.
        stream: where to print; None is standard output. It counts as a terminal if its ``isatty()`` says so.
    """

    def __init__(self, every_seconds: float = 30.0, every_percent: float = 10.0, stream: TextIO | None = None) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self.every_percent = every_percent
        self._stream = stream
        self._enabled = True
        self._live: Live | None = None
        self._console = Console(quiet=True)
        self._tokens: Any = 0
        self._line = ""
        self._started = self._printed_at = 0.0
        self._printed_share = 0.0
        self._first_step = self._step = 0
        self._planned: int | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._printed_at = time.monotonic()
        self._first_step = self._step = steps_done(trainer)
        self._printed_share, self._tokens, self._line = 0.0, 0, ""
        self._planned = steps_planned(trainer)
        if not self._enabled:
            return
        self._console = Console(file=self._stream or sys.stdout, highlight=False)
        if self._console.is_terminal:
            self._live = Live(Text("starting"), console=self._console, refresh_per_second=8, transient=True)
            self._live.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics = logged_scalars(trainer)  # on every rank: reading may reduce
        mask = getattr(batch, "attention_mask", None)
        if self._enabled and mask is not None:
            self._tokens = self._tokens + mask.sum()  # stays on the device: no wait here
        if self._enabled and steps_done(trainer) != self._step:
            self._step = steps_done(trainer)
            self._show(trainer, metrics)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = logged_scalars(trainer)
        self._stop()
        self._step = steps_done(trainer)
        if self._enabled and self._step > self._first_step:
            self._line = progress_text(metrics, self._step, None, self._speed(trainer, metrics))
            seconds = time.monotonic() - self._started
            self._print(f"{self._line}  | done in {_duration(seconds)}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()
        if self._enabled and self._line:
            self._print(f"{self._line}  | stopped at {steps_done(trainer)}")

    def _show(self, trainer: pl.Trainer, metrics: Metrics) -> None:
        total = self._planned
        share = 100 * self._step / total if total else 0.0
        now = time.monotonic()
        due = share - self._printed_share >= self.every_percent or now - self._printed_at >= self.every_seconds
        if self._live is None and (not due or self._step == total):  # the summary shows the last one
            return
        self._line = progress_text(metrics, self._step, total, self._speed(trainer, metrics))
        if self._live is not None:
            self._live.update(Text(self._line, no_wrap=True, overflow="ellipsis"))
            return
        self._print(self._line)
        self._printed_share, self._printed_at = share, now

    def _speed(self, trainer: pl.Trainer, metrics: Metrics) -> str:
        """Time of each phase of the last rollout if phases are timed, else tokens per second of the fit so far."""
        if any(tag.startswith("perf/seconds_") for tag in metrics):
            return phases_text(metrics)
        seconds_so_far = time.monotonic() - self._started
        tokens = int(self._tokens) * trainer.world_size
        return f"{_short(tokens / seconds_so_far)} tok/s" if tokens and seconds_so_far > 0 else ""

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def progress_text(metrics: Metrics, step: int, total: int | None, speed: str) -> str:
    """The line itself. The tags in ``metrics`` decide whether it speaks of SFT, preferences, the reward model or PPO.

    >>> progress_text({"train/loss": 2.0, "train/perplexity": 7.389}, 50, 200, "8.1k tok/s")
    'step 50/200  loss 2.000  ppl 7.39  | 8.1k tok/s'
    """
    unit = "step"
    if "objective/scores" in metrics:
        unit, parts = "rollout", _ppo_parts(metrics)
    elif "train/accuracy" in metrics:
        parts = _parts(metrics, ("loss", "train/loss", ".3f"), ("acc", "train/accuracy", ".3f"))
        parts += _parts(metrics, ("margin", "train/margin", ".2f"), ("val acc", "val/accuracy", ".3f"))
    else:
        parts = _parts(metrics, ("loss", "train/loss", ".3f"), ("ppl", "train/perplexity", ".2f"))
        parts += _parts(metrics, ("acc", "train/rewards/accuracies", ".3f"), ("margin", "train/rewards/margins", ".2f"))
        parts += _parts(metrics, ("val loss", "val/loss", ".3f"))
    head = f"{unit} {step}/{total}" if total else f"{unit} {step}"
    return "  ".join([head, *parts, *([f"| {speed}"] if speed else [])])


def phases_text(metrics: Metrics) -> str:
    """Seconds of each phase, with the speed of sampling.

    >>> phases_text({"perf/seconds_generate": 1.2, "perf/seconds_learn": 2.25, "perf/tokens_per_second_generate": 850})
    'gen 1.2s (850 tok/s) learn 2.2s'
    """
    times = {phase: metrics[f"perf/seconds_{phase}"] for phase in PHASES if f"perf/seconds_{phase}" in metrics}
    parts = [f"{PHASES[phase]} {seconds:.1f}s" for phase, seconds in times.items()]
    if "generate" in times and "perf/tokens_per_second_generate" in metrics:
        parts[0] += f" ({_short(metrics['perf/tokens_per_second_generate'])} tok/s)"
    return " ".join(parts)


def _parts(metrics: Metrics, *shown: tuple[str, str, str]) -> list[str]:
    return [f"{word} {metrics[tag]:{form}}" for word, tag, form in shown if tag in metrics]


def _ppo_parts(metrics: Metrics) -> list[str]:
    parts = _parts(metrics, ("reward", "objective/scores", ".3f"), ("kl", "objective/kl", "z.2f"))
    target = metrics.get("objective/kl_target", math.nan)
    if math.isfinite(target) and target > 0 and "objective/kl" in metrics:
        parts[-1] += f"/{target:.2g}"
    parts += _parts(metrics, ("beta", "objective/kl_coef", ".3g"))
    if "policy/clipfrac_avg" in metrics:
        parts.append(f"clip {100 * metrics['policy/clipfrac_avg']:.1f}%")
    return parts + _parts(metrics, ("len", "completions/mean_length", ".1f"))


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
