"""Prompts to sample answers to."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.base import Paths, RowDataModule
from rlhf_lightning.data.chat import encode_prompts, shorten_prompt
from rlhf_lightning.data.loader import ShardedLoader
from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.data.rows.shape import Shape
from rlhf_lightning.data.rows.types import StageKind
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.sequences import left_pad
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import PromptBatch, Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """Ids of one prompt and the row it comes from."""

    ids: list[int]
    row: Row = field(repr=False)
    weight: int = 1  # prompts

    @property
    def widths(self) -> list[int]:
        """See `Item`."""
        return [len(self.ids)]

    def padding_row(self) -> Prompt:
        """The same prompt; its attention mask will be all False."""
        return replace(self, weight=0)

    def token_ids(self) -> list[int]:
        """All ids."""
        return self.ids


class PromptLoader(ShardedLoader[Prompt]):
    """Whole batches only: the sizes of a rollout are fixed."""

    whole_batches = True


class PromptData(RowDataModule[Prompt]):
    """Every row with a ``prompt`` (alone, or beside a completion, a ranking, ...) as `PromptBatch`.

    The other columns stay in ``batch.rows`` for the reward functions. Filler rows of validation have an all-False
    attention mask.

    Args, beside those of `RowDataModule`:
        batch_size: responses per rollout, over all ranks.
        group_size: responses to each prompt; a batch holds ``batch_size / group_size`` prompts, which training repeats.
        max_prompt_length: tokens of a prompt, template and BOS included.
        on_long: "truncate_left" keeps the end of a longer prompt, "drop" drops its row.
        rollouts: batches in one epoch of the Trainer, drawn from an endless stream of shuffled prompts; None goes
            through the prompts once.
        max_rows: use only the first so many prompts; None uses all.
    """

    kind: StageKind = "prompts"  # type: ignore[misc]
    unit = "prompts"
    loader = PromptLoader

    def __init__(
        self,
        train: Paths,
        validation: Paths | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_prompt_length: int = 256,
        on_long: Literal["truncate_left", "drop"] = "truncate_left",
        validation_fraction: float = 0.05,
        seed: int = 0,
        max_bad_rows: int = 0,
        rollouts: int | None = None,
        max_rows: int | None = None,
        group_size: int = 1,
        shape: Shape | None = None,
    ) -> None:
        require("group_size", group_size, at_least=1)
        require("max_prompt_length", max_prompt_length, at_least=1)
        require("rollouts", rollouts, at_least=1)
        require("max_rows", max_rows, at_least=1)
        if batch_size % group_size:
            raise ConfigError(f"batch_size is {batch_size} responses; group_size={group_size} does not divide it.")
        super().__init__(
            train,
            validation,
            tokenizer,
            batch_size=batch_size // group_size,
            micro_batch_size=None,  # a rollout is cut by the module that learns from it
            validation_fraction=validation_fraction,
            seed=seed,
            length_window=0,
            max_bad_rows=max_bad_rows,
            shape=shape,
        )
        if on_long not in ("truncate_left", "drop"):
            raise ConfigError(f"on_long is '{on_long}'; choose truncate_left or drop.")
        self.max_prompt_length = max_prompt_length
        self.rollouts = rollouts
        self.max_rows = max_rows
        self.on_long = on_long

    def encode(self, rows: list[LocatedRow], counts: Counter[str]) -> list[Prompt]:
        """See `RowDataModule`."""
        items: list[Prompt] = []
        rows = rows[: self.max_rows]
        for row, ids in zip(rows, encode_prompts(self.tokenizer, rows), strict=True):
            if len(ids) > self.max_prompt_length:
                counts["dropped" if self.on_long == "drop" else "truncated"] += 1
                if self.on_long == "drop":
                    continue
                ids = shorten_prompt(ids, self.max_prompt_length, self.tokenizer.bos_token_id)
            counts["prompt_tokens"] += len(ids)
            items.append(Prompt(ids, row.row))
        return items

    def collate(self, items: list[Prompt], denominator: float) -> PromptBatch:
        """Pad on the left."""
        input_ids, mask = left_pad([item.ids for item in items], self.pad_id)
        counted = torch.tensor([item.weight > 0 for item in items])
        return PromptBatch(input_ids, mask & counted[:, None], tuple(item.row for item in items))

    def train_dataloader(self) -> ShardedLoader[Any]:
        """The training stream, cut into epochs of ``rollouts`` batches."""
        loader = super().train_dataloader()
        if self.rollouts is not None:
            loader.length = self.rollouts * loader.accumulate
        left = len(loader.dataset) % self.batch_size
        if left and self._place()[0] == 0:
            log.info(f"{left} of {len(loader.dataset)} prompts fill no rollout in a pass; others do in the next one")
        return loader

    def predict_dataloader(self) -> ShardedLoader[Any]:
        """All training prompts once, in order."""
        return self._make_loader(self.train_items, shuffle=False, training=False)
