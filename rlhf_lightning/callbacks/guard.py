"""Raise an alarm when PPO begins to game its score, and stop if asked to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from rlhf_lightning.callbacks.score_monitor import judged_scores
from rlhf_lightning.callbacks.steps import NewNumbers, gave_up, logged_scalars, steps_done, unpenalised_limit
from rlhf_lightning.data import PromptData
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.evaluation.hacking import PROXY, Alarm, HackingDetector, Limits
from rlhf_lightning.loggers.records import log_table
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.scoring import Scorer, place
from rlhf_lightning.types import PromptBatch, Rollout

MONITOR = "monitor/"


class RewardHackingGuard(pl.Callback):
    """Watches every rollout and warns once per cause; see `rlhf_lightning.evaluation.hacking.Limits` for the causes.

    Gold, the score that matters, comes from the first of these that is there:

    * ``gold``, a scorer of the guard's own, asked every ``every_n_rollouts`` about the rollout just learned from or,
      with ``held_out``, about fresh answers to those prompts. Training samples as if nobody had looked;
    * the tag ``gold_tag``, or the first ``monitor/...``, which `ScoreMonitor` logs. A guard that stands before the
      monitor in the list of callbacks sees its number one rollout later. The spread of gold is then not known and the
      gap is not watched.

    An alarm is a warning, a text ``guard/alarm`` in TensorBoard and an entry of ``alarms``; the scalar ``guard/alarm``
    counts them. ``guard/gold_drop`` and ``guard/gap`` are what was measured; ``guard/gold`` is the guard's own gold. In
    stages that do not log ``objective/scores`` the guard is silent.

    Args:
        limits: where an alarm is raised.
        action: ``warn``, or ``stop`` the fit after the rollout that raised the first alarm.
        gold: scorer that nothing learns from.
        gold_tag: logged tag to take for gold; None takes the first ``monitor/...``.
        held_out: file with rows that have a prompt, for ``gold``.
        every_n_rollouts: how often ``gold`` is asked.
        max_rows: held-out prompts that are answered, over all ranks.
        samples_per_prompt: answers to each of them.
        max_prompt_length: tokens; longer held-out prompts lose their beginning.

    Raises:
        ConfigError: an unknown ``action``, a number below 1, or ``held_out`` without ``gold``.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        action: Literal["warn", "stop"] = "warn",
        gold: Scorer | None = None,
        gold_tag: str | None = None,
        held_out: str | None = None,
        every_n_rollouts: int = 1,
        max_rows: int = 64,
        samples_per_prompt: int = 1,
        max_prompt_length: int = 256,
    ) -> None:
        if action not in ("warn", "stop"):
            raise ConfigError(f"action={action}: choose warn or stop")
        require("every_n_rollouts", every_n_rollouts, at_least=1)
        require("max_rows", max_rows, at_least=1)
        require("samples_per_prompt", samples_per_prompt, at_least=1)
        if held_out is not None and gold is None:
            raise ConfigError(
                "callbacks.guard.held_out needs a judge of the answers; add +judge@callbacks.guard.gold=function "
                "callbacks.guard.gold.function=my_project.fn"
            )
        self.detector = HackingDetector(limits)
        self.action = action
        self.gold = gold
        self.gold_tag = gold_tag
        self.held_out = held_out
        self.every_n_rollouts = every_n_rollouts
        self.max_rows, self.samples_per_prompt = max_rows, samples_per_prompt
        self.max_prompt_length = max_prompt_length
        self._prompts: PromptBatch | None = None
        self._new = NewNumbers()

    @property
    def alarms(self) -> list[Alarm]:
        """All that were raised, oldest first."""
        return self.detector.alarms

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        limits = self.detector.limits
        if limits.max_kl is None and (without_penalty := unpenalised_limit(pl_module)):
            self.detector.limits = replace(limits, max_kl=without_penalty)
        if self.gold is not None:
            place(self.gold, pl_module)
        if self.held_out is not None:
            data = PromptData(
                self.held_out, None, pl_module.tokenizer, batch_size=1, max_prompt_length=self.max_prompt_length,
                validation_fraction=0.0, max_rows=self.max_rows,
            )  # fmt: skip
            data.setup()
            mine = data.train_items[trainer.global_rank :: trainer.world_size] or data.train_items[:1]
            self._prompts = data.collate(mine, 0.0).to(pl_module.device).repeat_interleave(self.samples_per_prompt)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = logged_scalars(trainer)
        if PROXY not in metrics or gave_up(pl_module):
            return
        rollout = steps_done(trainer)
        gold, spread = self._ask(pl_module, rollout) if self.gold is not None else (self._monitored(trainer), math.nan)
        fresh = self.detector.observe(rollout, metrics, gold, spread)
        measured = self.detector.measured
        names = {"gold": "gold_drop", "gap": "gap"}
        logged = {f"guard/{name}": measured[cause] for cause, name in names.items() if cause in measured}
        if self.gold is not None and gold is not None:
            logged["guard/gold"] = gold
        pl_module.log_dict({"guard/alarm": float(len(self.alarms)), **logged})
        for alarm in fresh:
            text = f"rollout {alarm.rollout}, {alarm.cause}: {alarm.reason}"
            rank_zero_warn(f"reward hacking? {text}")
            for logger in trainer.loggers if trainer.is_global_zero else ():
                log_table(logger, "guard/alarms", ["cause", "reason"], [[alarm.cause, alarm.reason]], alarm.rollout - 1)
        if trainer.strategy.broadcast(bool(fresh) and self.action == "stop"):  # rank 0 decides for all
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return self.detector.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.detector.load_state_dict(state_dict)

    def _monitored(self, trainer: pl.Trainer) -> float | None:
        """The number of a monitor, if it was logged since the last look."""
        tag = self.gold_tag or min((t for t in trainer.callback_metrics if t.startswith(MONITOR)), default="")
        return self._new.look(trainer).get(tag)

    def _ask(self, pl_module: Any, rollout: int) -> tuple[float | None, float]:
        """Mean and standard deviation of what the guard's own scorer says, over all ranks, if it is its turn."""
        if rollout % self.every_n_rollouts and rollout > 1:
            return None, math.nan
        answers = pl_module.last_experience.rollout if self._prompts is None else self._answers(pl_module, rollout)
        assert self.gold is not None
        judged = judged_scores(self.gold, answers, pl_module.tokenizer)
        total, squares, count = pl_module.ranks.sum(judged.sum(), judged.square().sum(), len(judged))
        if not count:
            return None, math.nan
        mean = total / count
        return mean, math.sqrt(max(squares / count - mean**2, 0.0))

    def _answers(self, pl_module: Any, rollout: int) -> Rollout:
        """Fresh answers to the held-out prompts, by random numbers of their own."""
        return pl_module.generate_aside(self._prompts, rollout)
