"""Ranked answers for the reward model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlhf_lightning.data.answers import AnswerDataModule, written
from rlhf_lightning.data.chat import Encoded, encode_examples
from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.data.rows.repeats import pair_of
from rlhf_lightning.data.rows.types import StageKind, row_type
from rlhf_lightning.functional.sequences import right_pad
from rlhf_lightning.types import ComparisonBatch


@dataclass(frozen=True)
class Comparison:
    """The K ranked answers to one prompt."""

    sequences: list[list[int]]  # prompt + answer, K of them
    lengths: list[int]  # tokens of each answer
    ranks: list[int]  # 1 is best, equal ranks are ties
    margin: float = 0.0
    subset: str = ""
    weight: int = 1  # prompts
    masks: list[list[bool]] | None = None  # of each answer, True at tokens that the model is to write; None: all

    @property
    def widths(self) -> list[int]:
        """See `Item`."""
        return [len(sequence) for sequence in self.sequences]

    def padding_row(self) -> Comparison:
        """The same answers, all tied, so that no pair counts."""
        return replace(self, ranks=[1] * len(self.ranks), weight=0)

    def token_ids(self) -> list[int]:
        """All ids, and the ranks."""
        return [token for sequence in self.sequences for token in sequence] + self.ranks


class ComparisonData(AnswerDataModule[Comparison]):
    """Rows of prompt+chosen+rejected, chosen+rejected or prompt+completions+ranks as `ComparisonBatch`.

    All answers to a prompt are one item, so that they never part. Rows whose answers are all tied are dropped and
    counted (``tied``). Where the longest answer does not fit, the prompt is cut from the left for all answers alike,
    then answers from the right (``truncated_without_eos``); a row whose answers no longer differ is dropped
    (``indistinct``). The reward model's held-out accuracy is also reported for each value of a column ``subset``.

    Its arguments are those of `AnswerDataModule`; ``batch_size`` and ``micro_batch_size`` count prompts.
    """

    kind: StageKind = "comparisons"  # type: ignore[misc]
    unit = "prompts"

    def encode(self, rows: list[LocatedRow], counts: Counter[str]) -> list[Comparison]:
        """See `RowDataModule`."""
        rankings = [self._ranking(row) for row in rows]
        answers = [
            self._asked(row, prompt, completion)
            for row, (prompt, completions, _) in zip(rows, rankings, strict=True)
            for completion in completions
        ]
        encoded = iter(encode_examples(self.tokenizer, answers))
        items = []
        for row, (_, completions, ranks) in zip(rows, rankings, strict=True):
            item = self._item([next(encoded) for _ in completions], ranks, row, counts)
            if item is None:
                counts["dropped"] += 1
                continue
            counts["pairs"] += sum(a < b for a in item.ranks for b in item.ranks)
            items.append(item)
        return items

    def _ranking(self, row: LocatedRow) -> tuple[Any, list[Any], list[int]]:
        """Prompt, answers, and their ranks as 1, 2, ... without gaps."""
        columns = row.row
        if row_type(columns, self.kind) == "prompt+completions+ranks":
            order = sorted(set(columns["ranks"]))
            return columns["prompt"], columns["completions"], [order.index(rank) + 1 for rank in columns["ranks"]]
        prompt, *completions = pair_of(columns)
        return prompt, completions, [1, 2]

    def _item(
        self, answers: list[Encoded], ranks: list[int], row: LocatedRow, counts: Counter[str]
    ) -> Comparison | None:
        if len(set(ranks)) < 2:
            counts["tied"] += 1
            return None
        answers, ranks = self._merged(answers, ranks, counts)
        if len(set(ranks)) < 2:
            counts["indistinct"] += 1
            return None
        if max(len(answer) for answer in answers) > self.max_length:
            if self.on_long == "drop":
                counts["too_long"] += 1
                return None
            answers, ranks = self._shorten(answers, ranks, counts)
        if len(set(ranks)) < 2:
            counts["indistinct"] += 1
            return None
        sequences = [answer.input_ids for answer in answers]
        lengths = [len(answer.completion_ids) for answer in answers]
        margin, subset = float(row.row.get("margin") or 0.0), str(row.row.get("subset") or "")
        masks = [answer.completion_mask for answer in answers]
        partly = not all(all(mask) for mask in masks)
        return Comparison(sequences, lengths, ranks, margin, subset, masks=masks if partly else None)

    def _merged(
        self, answers: list[Encoded], ranks: list[int], counts: Counter[str]
    ) -> tuple[list[Encoded], list[int]]:
        """One of each answers that are the same tokens, with the best of their ranks."""
        best: dict[tuple[int, ...], tuple[int, Encoded]] = {}
        for rank, answer in sorted(zip(ranks, answers, strict=True), key=lambda pair: pair[0]):
            best.setdefault(tuple(answer.input_ids), (rank, answer))
        if len(best) == len(answers):
            return answers, ranks
        counts["merged_answers"] += len(answers) - len(best)
        return [answer for _, answer in best.values()], [rank for rank, _ in best.values()]

    def _shorten(
        self, answers: list[Encoded], ranks: list[int], counts: Counter[str]
    ) -> tuple[list[Encoded], list[int]]:
        """Cut all answers' prompt alike, and keep the best-ranked of answers that only differed in what was cut."""
        counts["truncated"] += 1
        longest = max(len(answer.completion_ids) for answer in answers)
        counts["truncated_without_eos"] += longest >= self.max_length
        room = max(1, self.max_length - longest)
        bos = self.tokenizer.bos_token_id
        kept: dict[tuple[int, ...], tuple[int, Encoded]] = {}
        for rank, answer in sorted(zip(ranks, answers, strict=True), key=lambda pair: pair[0]):
            short = answer.shortened(room + len(answer.completion_ids), bos).shortened(self.max_length, bos)
            kept.setdefault(tuple(short.input_ids), (rank, short))
        return [short for _, short in kept.values()], [rank for rank, _ in kept.values()]

    def collate(self, items: list[Comparison], denominator: float) -> ComparisonBatch:
        """Flatten the answers and pad them on the right."""
        input_ids, attention_mask = right_pad([s for item in items for s in item.sequences], self.pad_id)
        sizes = torch.tensor([len(item.sequences) for item in items])
        masks = [mask for item in items for mask in item.masks or [[True] * length for length in item.lengths]]
        return ComparisonBatch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            prompt_index=torch.arange(len(items)).repeat_interleave(sizes),
            ranks=torch.tensor([rank for item in items for rank in item.ranks]),
            lengths=torch.tensor([length for item in items for length in item.lengths]),
            margins=torch.tensor([item.margin for item in items], dtype=torch.float).repeat_interleave(sizes),
            num_prompts=sum(item.weight for item in items),
            denominator=denominator,
            subsets=tuple(item.subset for item in items for _ in item.ranks),
            written=written(attention_mask, masks),
        )
