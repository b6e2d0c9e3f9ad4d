"""Answers to read: the same prompts again and again while a policy learns, and the extremes of a rollout."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from rlhf_lightning.callbacks.score_monitor import ScoreMonitor
from rlhf_lightning.callbacks.steps import gave_up, steps_done, steps_planned
from rlhf_lightning.errors import RLHFError
from rlhf_lightning.functional.kl import totals
from rlhf_lightning.functional.sequences import left_pad
from rlhf_lightning.loggers.records import Value, log_table
from rlhf_lightning.models import eos_token_ids
from rlhf_lightning.models.tokens import decode
from rlhf_lightning.rollout import LoopEngine, Sampling
from rlhf_lightning.rollout.engine import weights_for
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import Experience, PromptBatch, Rollout, Row

log = logging.getLogger(__name__)
SAMPLES, BY_SCORE = "samples", "samples_by_score"
SEED = 0


class Samples(pl.Callback):
    """Tables for every logger: answers to the same prompts each time, and those of a rollout from worst to best score.

    ``samples`` is written where a policy learns from answers before the first step and after the last one, in PPO each
    ``every_n_rollouts`` rollouts, beginning with the first, and after the last one. The prompts are the first of the
    held-out rows, else of the training rows. The random numbers are the same each time and those of nobody else, so
    that a change is the policy's. ``samples_by_score`` is what the policy learned from, in PPO only.

    Args:
        every_n_rollouts: in PPO.
        prompts: rows of ``samples``.
        samples: rows of ``samples_by_score``; spread evenly from the lowest to the highest score.
        max_characters: longer prompts lose their beginning and longer responses their end, in the tables only.

    Attributes:
        sampling: how answers are drawn where the module does not say it.
        judge: a scorer whose opinion is a column; by default the one of a `ScoreMonitor`, if there is one.

    Raises:
        ConfigError: an argument is below 1.
    """

    def __init__(
        self, every_n_rollouts: int = 10, prompts: int = 8, samples: int = 8, max_characters: int = 600
    ) -> None:
        require("every_n_rollouts", every_n_rollouts, at_least=1)
        require("prompts", prompts, at_least=1)
        require("samples", samples, at_least=1)
        require("max_characters", max_characters, at_least=1)
        self.every_n_rollouts, self.prompts, self.samples = every_n_rollouts, prompts, samples
        self.max_characters = max_characters
        self.sampling = Sampling()
        self.judge: Any = None
        self._written = -1  # the step of the last table

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._written = -1
        if pl_module.automatic_optimization:
            self._write(trainer, pl_module, steps_done(trainer))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rollout = steps_done(trainer)
        due = (rollout - 1) % self.every_n_rollouts == 0 or rollout == steps_planned(trainer)
        if pl_module.automatic_optimization or gave_up(pl_module) or not due:
            return
        self._write(trainer, pl_module, step_of(trainer, rollout - 1))
        experience, tokenizer = getattr(pl_module, "last_experience", None), getattr(pl_module, "tokenizer", None)
        if experience is not None and tokenizer is not None and trainer.is_global_zero:
            columns, rows = by_score(experience, tokenizer, self.samples, self.max_characters)
            for logger in trainer.loggers:
                log_table(logger, BY_SCORE, columns, rows, step_of(trainer, rollout - 1))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.automatic_optimization:
            self._write(trainer, pl_module, steps_done(trainer))

    def _write(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        """Collective where the policy is sharded; rank 0 logs."""
        policy, sampling = getattr(pl_module, "policy", None), getattr(pl_module, "sampling", None) or self.sampling
        room = getattr(getattr(policy, "config", None), "max_position_embeddings", math.inf) - sampling.max_new_tokens
        prompts = first_prompts(getattr(trainer, "datamodule", None), self.prompts, room)
        if policy is None or not trainer.loggers or not prompts or step == self._written:
            return
        self._written = step
        tokenizer = pl_module.tokenizer
        asked = [ids for ids, _ in prompts]
        texts = decode(tokenizer, asked)
        told: list[Row] = [{"prompt": text, **row} for text, (_, row) in zip(texts, prompts, strict=True)]
        ids, mask = left_pad(asked, tokenizer.pad_token_id or 0)
        batch = PromptBatch(ids, mask, tuple(told)).to(pl_module.device)
        whole = getattr(getattr(pl_module, "engine", None), "holds_policy", True)
        engine = LoopEngine(gather="model" if whole else "layer")
        engine.seed(SEED)
        with weights_for(engine, policy):
            engine.sync(policy, eos_token_ids(policy, tokenizer), tokenizer.pad_token_id, 0)
            rollout = engine.generate(batch, sampling, tokenizer)
        judges = self._judges(trainer, pl_module)
        scores = {name: _scores(judge, rollout, tokenizer) for name, judge in judges.items()}
        if trainer.is_global_zero:
            columns, rows = _table(rollout, tokenizer, scores, range(len(prompts)), self.max_characters)
            for logger in trainer.loggers:
                log_table(logger, SAMPLES, columns, rows, step)

    def _judges(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        """The scorer that is learned from, and the judge."""
        callbacks: Iterable[Any] = trainer.callbacks  # type: ignore[attr-defined]
        judge = self.judge or next((part.scorer for part in callbacks if isinstance(part, ScoreMonitor)), None)
        found = {"score": getattr(pl_module, "scorer", None), "judge": judge}
        return {name: one for name, one in found.items() if one is not None}


def step_of(trainer: pl.Trainer, rollout: int) -> int:
    """Where Lightning puts the scalars of a rollout: the first one at 0, unless the module logs ``step``."""
    return int(trainer.callback_metrics.get("step", rollout))


def first_prompts(data: Any, count: int, longest: float = math.inf) -> list[tuple[list[int], Row]]:
    """Ids and row of different prompts of a data module, held-out ones first; none where its items have no prompt.

    The row is empty where an item keeps none; a reward function may need its other columns.

    Args:
        data: its ``val_items`` and ``train_items`` are looked at.
        count: how many there are at most.
        longest: tokens; others are passed over.
    """
    found: dict[tuple[int, ...], Row] = {}
    for item in (*getattr(data, "val_items", ()), *getattr(data, "train_items", ())):
        mask = getattr(item, "mask", None)
        ids = getattr(item, "ids", None) or (item.input_ids[: mask.index(True)] if mask and True in mask else [])
        if ids and len(ids) <= longest:
            found[tuple(ids)] = dict(getattr(item, "row", {}))
        if len(found) == count:
            break
    return [(list(ids), row) for ids, row in found.items()]


def by_score(
    experience: Experience, tokenizer: Any, samples: int, max_characters: int
) -> tuple[list[str], list[list[Value]]]:
    """Columns and rows of prompts, responses, scores and KL, lowest score first."""
    kl = torch.where(experience.mask, experience.logprobs - experience.ref_logprobs, 0.0).sum(1)
    order = experience.scores.argsort().tolist()
    count = min(samples, len(order))
    chosen = [order[round(i * (len(order) - 1) / max(count - 1, 1))] for i in range(count)]
    numbers = {"score": experience.scores.tolist(), "KL (nats)": kl.tolist()}
    return _table(experience.rollout, tokenizer, numbers, chosen, max_characters)


def _table(
    rollout: Rollout, tokenizer: Any, numbers: dict[str, list[float]], chosen: Iterable[int], longest: int
) -> tuple[list[str], list[list[Value]]]:
    rows: list[list[Value]] = []
    for row in chosen:
        asked = rollout.prompt_ids[row][rollout.prompt_mask[row]].tolist()
        answered = rollout.response_ids[row][rollout.attended[row]].tolist()
        prompt, response = decode(tokenizer, [asked, answered])
        prompt = prompt if len(prompt) <= longest else "..." + prompt[-longest:]
        response = response if len(response) <= longest else response[:longest] + "..."
        ended = "yes" if rollout.finished[row] else "no"
        rows.append([*(values[row] for values in numbers.values()), int(rollout.lengths[row]), ended, prompt, response])
    return [*numbers, "tokens", "ended", "prompt", "response"], rows


def _scores(scorer: Any, rollout: Rollout, tokenizer: Any) -> list[float]:
    """What a scorer says, which learns nothing from being asked; NaN if it needs columns that prompts do not have."""
    learns = hasattr(scorer, "load_state_dict") and not isinstance(scorer, nn.Module)
    before = copy.deepcopy(scorer.state_dict()) if learns else None
    try:
        found: Sequence[float] = totals(scorer.score(rollout, tokenizer), rollout.mask).tolist()
    except RLHFError as error:
        log.warning(f"samples: {type(scorer).__name__} cannot judge them: {str(error).splitlines()[0]}")
        return [float("nan")] * len(rollout)
    finally:
        if learns:
            scorer.load_state_dict(before)
    return list(found)
