"""What the data modules of rows with answers share: a limit on prompt and answer together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.base import Paths, RowDataModule
from rlhf_lightning.data.chat import Encoded
from rlhf_lightning.data.loader import T
from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.data.rows.shape import Shape
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.rules.rows import TEMPLATE


class AnswerDataModule(RowDataModule[T]):
    """Rows of a prompt and one or several answers.

    Args, beside those of `RowDataModule`:
        max_length: tokens of prompt and answer together, EOS included.
        on_long: "drop" a longer row, or "truncate" it: first its prompt from the left, then its answer from the right,
            which costs the EOS and is counted as ``truncated_without_eos``.
    """

    def __init__(
        self,
        train: Paths,
        validation: Paths | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        max_length: int = 512,
        validation_fraction: float = 0.05,
        seed: int = 0,
        max_bad_rows: int = 0,
        on_long: Literal["drop", "truncate"] = "truncate",
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
        )
        if on_long not in ("drop", "truncate"):
            raise ConfigError(f"on_long is '{on_long}'; choose drop or truncate.")
        require("max_length", max_length, at_least=2, why="one token of prompt and one of answer")
        self.max_length = max_length
        self.on_long = on_long

    def _fit(self, example: Encoded, counts: Counter[str]) -> Encoded | None:
        """The example in at most ``max_length`` tokens, and what that took; None to drop it."""
        if len(example) <= self.max_length:
            return example
        if self.on_long == "drop":
            return None
        counts["truncated"] += 1
        counts["truncated_without_eos"] += len(example.completion_ids) >= self.max_length
        return example.shortened(self.max_length, self.tokenizer.bos_token_id)

    def _asked(self, row: LocatedRow, prompt: Any, completion: Any) -> LocatedRow:
        """One answer of a row, with what the row gives the chat template."""
        given = {name: row.row[name] for name in TEMPLATE if row.row.get(name)}
        return row._replace(row={"prompt": prompt, "completion": completion, **given})


def written(attention_mask: Tensor, masks: Sequence[Sequence[bool]]) -> Tensor | None:
    """Which tokens of a padded batch the model is to write, bool [B, S]; None where these are all of every answer.

    Args:
        attention_mask: bool [B, S], padded on the right.
        masks: of the tokens of each answer, which are the last of its row.

    >>> written(torch.tensor([[True, True, True, True, False]]), [[True, False, True]])
    tensor([[False,  True, False,  True, False]])
    """
    if all(all(mask) for mask in masks):
        return None
    found = torch.zeros_like(attention_mask)
    for row, end, mask in zip(found, attention_mask.sum(1).tolist(), masks, strict=True):
        row[end - len(mask) : end] = torch.tensor(mask)
    return found
