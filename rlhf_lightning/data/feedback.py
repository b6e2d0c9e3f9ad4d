"""Single answers with a label, good or bad, for KTO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.answers import AnswerDataModule, written
from rlhf_lightning.data.base import Paths
from rlhf_lightning.data.chat import Encoded, encode_examples
from rlhf_lightning.data.loader import ShardedLoader
from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.data.rows.fields import as_label
from rlhf_lightning.data.rows.repeats import pair_of
from rlhf_lightning.data.rows.shape import Shape
from rlhf_lightning.data.rows.types import StageKind, row_type
from rlhf_lightning.errors import DataError
from rlhf_lightning.functional.sequences import right_pad
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import AnswerBatch, FeedbackBatch


@dataclass(frozen=True)
class Feedback:
    """One answer and whether it was called good."""

    example: Encoded
    desirable: bool
    weight: int = 1  # answers

    @property
    def widths(self) -> list[int]:
        """See `Item`."""
        return [len(self.example)]

    def padding_row(self) -> Feedback:
        """The same tokens, as an answer of length 0."""
        return replace(self, weight=0)

    def token_ids(self) -> list[int]:
        """All ids, and the label."""
        return [*self.example.input_ids, int(self.desirable)]


class FeedbackLoader(ShardedLoader[Feedback]):
    """Also gives strange answers to prompts, from which KTO's reference point is measured.

    In training they come with the first micro-batch of an optimizer step, for this rank's whole share of it: the point
    is one number per step, needed before the first backward pass. The next prompt is looked for in the whole global
    batch, so that neither ranks nor micro-batches change the pairing. In evaluation every batch has its own.
    """

    mismatched: Callable[[Sequence[Feedback], Sequence[int]], AnswerBatch]

    def _training_batch(self, position: int) -> FeedbackBatch:
        batch: FeedbackBatch = super()._training_batch(position)
        if position % self.accumulate:
            return batch
        epoch, step = divmod(position, self._pass_length)
        rows = self._global_batch(epoch, step // self.accumulate)
        share = max(len(rows) // self.world_size, 1)  # equal on all ranks, which gather them
        mine = [place % len(rows) for place in range(self.rank * share, (self.rank + 1) * share)]
        if len(rows) == 1:  # the last one of an epoch, with the answer of any other prompt
            return replace(batch, mismatched=self.mismatched(self.dataset, rows))
        return replace(batch, mismatched=self.mismatched([self.dataset[row] for row in rows], mine))

    def _evaluation_batch(self, step: int) -> FeedbackBatch:
        batch: FeedbackBatch = super()._evaluation_batch(step)
        mine = self._share(self._evaluation_rows[step])
        strange = self.mismatched(self.dataset, mine or [0])
        return replace(
            batch, mismatched=strange if mine else replace(strange, lengths=torch.zeros(1, dtype=torch.long))
        )


class FeedbackData(AnswerDataModule[Feedback]):
    """Rows of prompt+completion+label as `FeedbackBatch`, one item per answer.

    Comparisons do as well: a chosen answer counts as good, a rejected one as bad; in a ranking an answer is good if
    more answers are below it than above, bad if more are above, and left out (``undecided``) if they balance.
    Its arguments are those of `AnswerDataModule`; ``batch_size``, at least 2, and ``micro_batch_size`` count answers.

    Raises:
        ConfigError: a batch of one answer, or another argument that cannot work.
        DataError: in `setup`, if all training answers have the same label.
    """

    kind: StageKind = "feedback"  # type: ignore[misc]
    unit = "answers"
    loader = FeedbackLoader

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
            max_length=max_length,
            on_long=on_long,
        )
        require("batch_size", batch_size, at_least=2, why="KTO measures from the answers that other prompts got")

    def setup(self, stage: str | None = None) -> None:
        """See `RowDataModule`; also refuses training rows with one label only."""
        super().setup(stage)
        labels = {item.desirable for item in self.train_items}
        if stage in (None, "fit") and len(labels) == 1:
            raise DataError(
                f"{', '.join(map(str, self.train))}: every label is {str(labels.pop()).lower()}; KTO learns from good"
                " and bad answers, so add rows of the other label."
            )

    def encode(self, rows: list[LocatedRow], counts: Counter[str]) -> list[Feedback]:
        """See `RowDataModule`."""
        answers: list[LocatedRow] = []
        labels: list[bool] = []
        owners: list[int] = []
        for number, row in enumerate(rows):
            prompt, completions, row_labels = self._labelled(row)
            for completion, desirable in zip(completions, row_labels, strict=True):
                if desirable is None:
                    counts["undecided"] += 1
                    continue
                answers.append(self._asked(row, prompt, completion))
                labels.append(desirable)
                owners.append(number)
        encoded = encode_examples(self.tokenizer, answers)
        said: dict[tuple[int, tuple[int, ...]], set[bool]] = {}
        keys = [(owner, tuple(example.input_ids)) for owner, example in zip(owners, encoded, strict=True)]
        for key, desirable in zip(keys, labels, strict=True):
            said.setdefault(key, set()).add(desirable)
        items = []
        for key, example, desirable in zip(keys, encoded, labels, strict=True):
            if len(said[key]) > 1:  # the same tokens, called good and bad by one row
                counts["indistinct"] += 1
            fitted = self._fit(example, counts) if len(said[key]) == 1 else None
            if fitted is None:
                counts["dropped"] += 1
                continue
            counts["desirable_rows" if desirable else "undesirable_rows"] += 1
            items.append(Feedback(fitted, desirable))
        return items

    def _labelled(self, row: LocatedRow) -> tuple[Any, list[Any], list[bool | None]]:
        """Prompt, answers, and whether each is good; None where a ranking does not say."""
        columns = row.row
        kind = row_type(columns, self.kind)
        if kind == "prompt+completion+label":
            return columns["prompt"], [columns["completion"]], [as_label(columns["label"])]
        if kind == "prompt+completions+ranks":
            return (
                columns["prompt"],
                columns["completions"],
                [_label(rank, columns["ranks"]) for rank in columns["ranks"]],
            )
        prompt, *completions = pair_of(columns)
        return prompt, completions, [True, False]

    def collate(self, items: list[Feedback], denominator: float) -> FeedbackBatch:
        """Pad on the right; `FeedbackLoader` adds the mismatched answers."""
        answers = self._answers([item.example for item in items])
        return FeedbackBatch(
            input_ids=answers.input_ids,
            attention_mask=answers.attention_mask,
            lengths=answers.lengths * torch.tensor([item.weight for item in items]),
            written=answers.written,
            desirable=torch.tensor([item.desirable for item in items]),
            mismatched=None,
            denominator=denominator,
        )

    def mismatched(self, items: Sequence[Feedback], places: Sequence[int]) -> AnswerBatch:
        """The prompts at ``places`` of ``items``, each with the answer that the next other prompt of ``items`` got."""
        examples = []
        for place in places:
            own, other = items[place].example, next_prompt(items, place).example
            strange = replace(own, completion_ids=other.completion_ids, completion_mask=other.completion_mask)
            examples.append(strange.shortened(self.max_length, self.tokenizer.bos_token_id))
        return self._answers(examples)

    def _answers(self, examples: Sequence[Encoded]) -> AnswerBatch:
        input_ids, attention_mask = right_pad([example.input_ids for example in examples], self.pad_id)
        return AnswerBatch(
            input_ids,
            attention_mask,
            torch.tensor([len(example.completion_ids) for example in examples]),
            written=written(attention_mask, [example.completion_mask for example in examples]),
        )

    def _make_loader(self, items: list[Feedback], *, shuffle: bool, training: bool) -> ShardedLoader[Feedback]:
        loader: Any = super()._make_loader(items, shuffle=shuffle, training=training)
        loader.mismatched = self.mismatched
        return loader


def next_prompt(items: Sequence[Feedback], place: int) -> Feedback:
    """The item after ``place``, round and round, that has another prompt; the next one if all prompts are the same."""
    own = items[place].example.prompt_ids
    after = (items[(place + step) % len(items)] for step in range(1, len(items)))
    return next((item for item in after if item.example.prompt_ids != own), items[(place + 1) % len(items)])


def _label(rank: float, ranks: Sequence[float]) -> bool | None:
    below, above = sum(other > rank for other in ranks), sum(other < rank for other in ranks)
    return None if below == above else below > above
