"""Demonstrations for supervised fine-tuning."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.answers import AnswerDataModule
from rlhf_lightning.data.base import Paths
from rlhf_lightning.data.chat import Encoded, encode_examples
from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.data.rows.shape import Shape
from rlhf_lightning.data.rows.types import StageKind
from rlhf_lightning.data.rows.validate import narrowed
from rlhf_lightning.functional.sequences import right_pad
from rlhf_lightning.types import SFTBatch


@dataclass(frozen=True)
class Demonstration:
    """Ids of one example and which of them are to be predicted; the first one never is."""

    input_ids: list[int]
    mask: list[bool]
    weight: int  # True entries of `mask`

    @property
    def widths(self) -> list[int]:
        """See `Item`."""
        return [len(self.input_ids)]

    def padding_row(self) -> Demonstration:
        """The same tokens, none of them counted."""
        return replace(self, mask=[False] * len(self.mask), weight=0)

    def token_ids(self) -> list[int]:
        """All ids."""
        return self.input_ids


class DemonstrationData(AnswerDataModule[Demonstration]):
    """Rows of prompt+completion, messages or text as `SFTBatch`.

    Args, beside those of `AnswerDataModule`:
        completion_only: learn the completion; False also learns the prompt (``text`` rows are always learned whole).
    """

    kind: StageKind = "demonstrations"  # type: ignore[misc]
    group_by_prompt = False  # one prompt with many answers is how small demonstration sets are written

    def __init__(
        self,
        train: Paths,
        validation: Paths | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        max_length: int = 512,
        completion_only: bool = True,
        validation_fraction: float = 0.05,
        seed: int = 0,
        max_bad_rows: int = 0,
        on_long: Literal["drop", "truncate"] = "drop",
        length_window: int = 1,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(
            train,
            validation,
            tokenizer,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            validation_fraction=validation_fraction,
            seed=seed,
            length_window=length_window,
            max_bad_rows=max_bad_rows,
            shape=shape,
            max_length=max_length,
            on_long=on_long,
        )
        self.completion_only = completion_only

    def encode(self, rows: list[LocatedRow], counts: Counter[str]) -> list[Demonstration]:
        """See `RowDataModule`."""
        items = []
        rows = [row._replace(row=narrowed(row.row, self.kind)) for row in rows]
        for example in encode_examples(self.tokenizer, rows):
            fitted = self._fit(example, counts)
            item = self._item(fitted) if fitted is not None else None
            if item is None:
                counts["dropped"] += 1
                continue
            counts["supervised_tokens"] += item.weight
            items.append(item)
        return items

    def _item(self, example: Encoded) -> Demonstration | None:
        mask = [False] * len(example.prompt_ids) + example.completion_mask
        if not self.completion_only:
            mask = [True] * len(mask)
        mask[0] = False  # nothing stands before it to predict it from
        return Demonstration(example.input_ids, mask, sum(mask)) if any(mask) else None

    def collate(self, items: list[Demonstration], denominator: float) -> SFTBatch:
        """Pad on the right."""
        input_ids, attention_mask = right_pad([item.input_ids for item in items], self.pad_id)
        mask = torch.zeros_like(attention_mask)
        for row, item in zip(mask, items, strict=True):
            row[: len(item.mask)] = torch.tensor(item.mask)
        return SFTBatch(input_ids, attention_mask, mask, denominator)
