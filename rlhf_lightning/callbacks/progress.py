"""One line that tells how a stage goes: live on a terminal, now and then in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar, Timer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from rlhf_lightning.callbacks.steps import logged_scalars, steps_done, steps_planned
from rlhf_lightning.console.lines import bar, clock, fitted, short
from rlhf_lightning.metrics.shown import LIKELIHOOD, TARGETS, Shown
from rlhf_lightning.rules.ranges import require

PHASES = {"generate": "gen", "score": "score", "evaluate": "eval", "learn": "learn"}
MONITOR = "monitor/"
Metrics = Mapping[str, float]


class ProgressLine(ProgressBar):
    """Replaces Lightning's progress bar by one line per stage; what it shows of a fit is `shown` of the module.

    On a terminal the line is redrawn in place, and as much of it stands there as fits. Elsewhere a plain line is
    printed each ``every_percent`` of the way and at least each ``every_seconds``, so that log files stay readable. A
    summary line stays at the end, with the reason where training ended early. Only rank 0 prints.
    The Trainer must keep ``enable_progress_bar=True`` (Lightning refuses any bar otherwise).

    Args:
        every_seconds: longest silence in a log file, s.
        every_percent: share of the way between two lines in a log file, percent.
        stream: where to print; None is standard output. It counts as a terminal if its ``isatty()`` says so.

    Attributes:
        title: what each line begins with, such as the stage and its place among all.

    Raises:
        ConfigError: a number below 0.
    """

    def __init__(self, every_seconds: float = 30.0, every_percent: float = 10.0, stream: TextIO | None = None) -> None:
        super().__init__()
        require("every_seconds", every_seconds, at_least=0)
        require("every_percent", every_percent, at_least=0)
        self.every_seconds = every_seconds
        self.every_percent = every_percent
        self.title = ""
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
        self._unit = "step"
        self._first: dict[str, float] = {}

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        unit = "step" if pl_module.automatic_optimization else "rollout"
        self._begin(unit, steps_done(trainer), steps_planned(trainer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics = logged_scalars(trainer)  # on every rank: reading may reduce
        mask = getattr(batch, "attention_mask", None)
        if self._enabled and mask is not None:
            self._tokens = self._tokens + mask.sum()  # stays on the device: no wait here
        if self._enabled and steps_done(trainer) != self._step:
            self._step = steps_done(trainer)
            self._first = self._first or dict(metrics)
            self._show([*shown_parts(pl_module, metrics), *self._speed(trainer, metrics)])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = logged_scalars(trainer)
        self._step = steps_done(trainer)
        early = self._planned is not None and self._step < self._planned
        why = f"ended early, {self._planned} were planned: {why_early(trainer)}" if early else ""
        self._end([why, *shown_parts(pl_module, metrics, self._first), *self._speed(trainer, metrics)])

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batches = sum(int(n) for n in trainer.num_predict_batches if n != float("inf"))
        self._begin("batch", 0, batches or None)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._step += 1
        if self._enabled:
            self._show([f"{len(getattr(pl_module, 'records', ())):,} answers"])

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_step, self._step, self._unit = 0, len(getattr(pl_module, "records", ())), "answer"
        self._end([])

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()
        if self._enabled and self._line:
            self._print(fitted([self._line, f"| stopped at {self._step}"]))

    def _begin(self, unit: str, step: int, planned: int | None) -> None:
        self._unit, self._planned, self._first = unit, planned, {}
        self._started = self._printed_at = time.monotonic()
        self._first_step = self._step = step
        self._printed_share, self._tokens, self._line = 0.0, 0, ""
        if not self._enabled:
            return
        self._console = Console(file=self._stream or sys.stdout, highlight=False)
        if self._console.is_terminal:
            start = Text(fitted([self.title, "starting"]))
            self._live = Live(start, console=self._console, refresh_per_second=8, transient=True)
            self._live.start()

    def _show(self, parts: list[str]) -> None:
        total, now = self._planned, time.monotonic()
        share = 100 * self._step / total if total else 0.0
        due = share - self._printed_share >= self.every_percent or now - self._printed_at >= self.every_seconds
        if self._live is None and (not due or self._step == total):  # the summary shows the last one
            return
        live = self._live is not None
        drawn = bar(self._step / total) if live and total else ""
        place = f"{self._unit} {self._step}/{total}" if total else f"{self._unit} {self._step}"
        self._line = fitted([self.title, drawn, place, self._times(now), *parts], self._console.width if live else None)
        if self._live is not None:
            self._live.update(Text(self._line, no_wrap=True, overflow="ellipsis"))
            return
        self._print(self._line)
        self._printed_share, self._printed_at = share, now

    def _times(self, now: float) -> str:
        """Time since the start, and the time left at this pace."""
        elapsed, done = now - self._started, self._step - self._first_step
        left = "" if not self._planned or not done else clock(elapsed / done * (self._planned - self._step))
        return f"{clock(elapsed)}, {left} left" if left else clock(elapsed)

    def _end(self, parts: list[str]) -> None:
        self._stop()
        done = self._step - self._first_step
        if self._enabled:
            again = f", {self._step} in all" if self._first_step else ""
            took = f"{done:,} {self._unit}{'s' * (done != 1)} in {clock(time.monotonic() - self._started)}{again}"
            self._line = fitted([self.title, took, *parts])
            self._print(self._line)

    def _speed(self, trainer: pl.Trainer, metrics: Metrics) -> list[str]:
        """Time of each phase of the last rollout if phases are timed, else tokens per second of the fit so far."""
        if any(tag.startswith("perf/seconds_") for tag in metrics):
            return phase_parts(metrics)
        seconds_so_far = time.monotonic() - self._started
        tokens = int(self._tokens) * trainer.world_size
        return [f"| {short(tokens / seconds_so_far)} tok/s"] if tokens and seconds_so_far > 0 else []

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=not self._console.is_terminal)  # a terminal gets whole words


def shown_parts(module: Any, metrics: Metrics, first: Metrics | None = None) -> list[str]:
    """What `shown` of a module asks for, of the tags that are there, and what monitors say.

    Args:
        module: what trains; without ``shown`` loss and perplexity.
        metrics: numbers by tag.
        first: of the first step; the number that comes first, and validations, are then shown with what they were.

    >>> shown_parts(None, {"train/loss": 1.5, "train/perplexity": 4.48}, {"train/loss": 2.0})
    ['loss 2.000 -> 1.500', 'ppl 4.48']
    """
    table: Shown = getattr(module, "shown", LIKELIHOOD)
    parts: list[str] = []
    for word, tag, form in (*table, *((t.removeprefix(MONITOR), t, ".2f") for t in metrics if t.startswith(MONITOR))):
        if tag not in metrics:
            continue
        since = f"{first[tag]:{form}} -> " if first and tag in first and (not parts or tag.startswith("val/")) else ""
        target = metrics.get(TARGETS.get(tag, ""), math.nan)
        towards = f"/{target:.2g}" if math.isfinite(target) and target > 0 else ""
        parts.append(f"{word} {since}{metrics[tag]:{form}}{towards}")
    return parts


def phase_parts(metrics: Metrics) -> list[str]:
    """Seconds of each phase, the longest first, with the speed of sampling.

    >>> phase_parts({"perf/seconds_generate": 1.2, "perf/seconds_learn": 2.25, "perf/tokens_per_second_generate": 850})
    ['| learn 2.2s', 'gen 1.2s (850 tok/s)']
    """
    times = {phase: metrics[f"perf/seconds_{phase}"] for phase in PHASES if f"perf/seconds_{phase}" in metrics}
    parts = []
    for phase, seconds in sorted(times.items(), key=lambda pair: -pair[1]):
        speed = metrics.get("perf/tokens_per_second_generate") if phase == "generate" else None
        parts.append(f"{PHASES[phase]} {seconds:.1f}s" + (f" ({short(speed)} tok/s)" if speed else ""))
    return [f"| {parts[0]}", *parts[1:]] if parts else []


def why_early(trainer: pl.Trainer) -> str:
    """What ended a fit before the steps that were planned."""
    for part in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(part, Timer) and part.time_remaining() is not None and (part.time_remaining() or 0) <= 0:
            return "trainer.max_time is over"
        if isinstance(part, EarlyStopping) and part.stopping_reason_message:
            return f"{type(part).__name__}: {part.stopping_reason_message}"
        if getattr(part, "action", "") == "stop" and getattr(part, "alarms", None):
            return f"the alarm of {type(part).__name__}"
    if 0 < trainer.max_steps <= trainer.global_step:
        return f"trainer.max_steps={trainer.max_steps}"
    return "a callback or trainer.should_stop ended it" if trainer.should_stop else "the data ended"
