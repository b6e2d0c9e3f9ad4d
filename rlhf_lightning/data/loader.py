"""The order of rows: shuffled by seed and epoch, cut into global batches, resumed at any micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch

from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.functional.lengths import cut
from rlhf_lightning.rules.combinations import check_batch

MICRO_BATCHES = "micro_batches_per_step"  # in the state of a data module


class Item(Protocol):
    """One encoded example."""

    @property
    def weight(self) -> int:
        """What the example adds to the denominator of its batch: supervised tokens, or 1."""
        ...

    @property
    def widths(self) -> list[int]:
        """Tokens of each of its sequences; in a batch all are padded to the longest."""
        ...

    def padding_row(self) -> Self:
        """A copy that counts for nothing, for a rank that has no rows left."""
        ...

    def token_ids(self) -> list[int]:
        """All ids of the example, to recognise it by."""
        ...


T = TypeVar("T", bound=Item)


def split_batch(
    batch_size: int, micro_batch_size: int | None, world_size: int, by_length: bool = False
) -> tuple[int, int]:
    """Rows of an even micro-batch, and micro-batches that each rank accumulates for one optimizer step.

    Args:
        batch_size: rows per optimizer step, over all ranks.
        micro_batch_size: rows a rank holds at once; None takes its whole share.
        world_size: ranks.
        by_length: micro-batches are cut by length and need no equal number of rows; the ranks still do.

    Raises:
        ConfigError: the sizes do not divide.

    >>> split_batch(64, 8, 2)
    (8, 4)
    >>> split_batch(8, 16, 2)
    (4, 1)
    >>> split_batch(9, 2, 1, by_length=True)
    (2, 5)
    """
    check_batch(batch_size, micro_batch_size, world_size, by_length)
    share = batch_size // world_size
    micro = share if micro_batch_size is None else min(micro_batch_size, share)
    return micro, -(-share // micro)


class ShardedLoader(Generic[T]):
    """Micro-batches of one rank. Every rank sees the same shuffled order and takes its own rows of each global batch.

    For training the loader is an endless stream that depends on nothing but the seed and the ``position``, the number
    of micro-batches handed out since the start: epoch ``position // len`` is a permutation drawn from a generator of
    its own. One iteration hands out ``len(self)`` micro-batches, and the next one goes on where the last was left,
    whoever stopped it; so a resumed run sees the rows an uninterrupted run would have seen. The rows of a global batch
    are the same set for every ``micro_batch_size`` and ``world_size``. The last one of an epoch has the rows that are
    left, in as many micro-batches as the others, of which those without rows get one padding row; with
    ``whole_batches`` these rows wait for another epoch.

    A ``length_window`` above 0 cuts each global batch into micro-batches of rows of similar length, as many as an even
    cut has, none of them with more padded tokens than ``micro_batch_size`` times the longest row. The largest comes
    first, and the ranks get neighbours at the same time, so that none waits. In evaluation the rows are sorted before
    they are cut.

    For evaluation every iteration hands out the same batches, each rank gets the same number of
    them, and a rank without rows gets one padding row.

    ``collate(items, denominator)`` receives the items of a micro-batch and the sum of the weights of *all* rows of its
    global batch, divided by the micro-batches of that batch over all ranks. A loss that is a sum divided by this
    denominator therefore averages, over accumulation and ranks, to the exact mean over the global batch. In evaluation
    each micro-batch over all ranks is a global batch of its own.

    ``length`` may be set to hand out another number of micro-batches in one iteration of the endless stream.

    Args:
        dataset: encoded examples, the same on every rank.
        collate: builds the batch.
        batch_size: rows per optimizer step, over all ranks.
        micro_batch_size: rows a rank holds at once, by length of the longest; None takes its whole share.
        rank: of this process.
        world_size: number of processes.
        shuffle: a new permutation in each epoch; False keeps the order of the dataset.
        seed: of the permutations, the same on every rank.
        training: False for evaluation.
        length_window: 0 cuts micro-batches in the order of the rows, 1 by length; above 1 the rows of so many global
            batches of training are sorted by length together and dealt out again, so that each has rows of similar
            length; they come in a random order.

    Raises:
        ConfigError: sizes that do not divide, or a window below 0.
        DataError: fewer rows than one batch in training, or none at all.
    """

    whole_batches: ClassVar[bool] = False

    def __init__(
        self,
        dataset: Sequence[T],
        collate: Callable[[list[T], float], Any],
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        training: bool = True,
        length_window: int = 1,
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.batch_size = batch_size
        if length_window < 0:
            raise ConfigError(f"length_window is {length_window} global batches; it must be at least 0.")
        self.by_length = length_window > 0
        sizes = split_batch(batch_size, micro_batch_size, world_size, self.by_length)
        self.micro_batch_size, self.accumulate = sizes
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.training = training
        self.length_window = length_window
        self.position = 0
        self.length: int | None = None
        self._order: tuple[int, list[int]] | None = None
        self._cut: tuple[tuple[int, int], list[list[int]]] | None = None
        if len(dataset) < (batch_size if training else 1):
            raise DataError(f"{len(dataset)} rows do not fill one batch of {batch_size}; add rows or lower batch_size.")

    def __len__(self) -> int:
        """Micro-batches of this rank in one iteration."""
        if self.training:
            return self.length or self._pass_length
        return math.ceil(len(self.dataset) / (self.micro_batch_size * self.world_size))

    def __iter__(self) -> Iterator[Any]:
        for step in range(len(self)):
            if not self.training:
                yield self._evaluation_batch(step)
                continue
            yield self.draw()

    def draw(self) -> Any:
        """The next micro-batch of the endless stream of training, beside those that an iteration counts."""
        batch = self._training_batch(self.position)
        self.position += 1
        return batch

    def peek(self) -> Any:
        """What `draw` will hand out next, without moving the stream."""
        return self._training_batch(self.position)

    def look_through(self, epoch: int, at_most: int | None = None) -> Iterator[Any]:
        """The micro-batches of one pass of training, or the first of them, without moving the stream."""
        start = epoch * self._pass_length
        for step in range(self._pass_length)[:at_most]:
            yield self._training_batch(start + step)

    def state_dict(self) -> dict[str, int]:
        """The position; the same on every rank."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after ``state_dict["position"]`` micro-batches."""
        self.position = int(state_dict["position"])

    def _training_batch(self, position: int) -> Any:
        epoch, step = divmod(position, self._pass_length)
        batch, micro = divmod(step, self.accumulate)
        rows = self._global_batch(epoch, batch)
        total = sum(self.dataset[row].weight for row in rows)
        mine = [self.dataset[row] for row in self._micro_batches(epoch, batch)[micro * self.world_size + self.rank]]
        items = mine or [self.dataset[rows[0]].padding_row()]
        return self.collate(items, total / (self.accumulate * self.world_size))

    def _global_batch(self, epoch: int, batch: int) -> list[int]:
        return self._permutation(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _micro_batches(self, epoch: int, batch: int) -> list[list[int]]:
        """Rows of all micro-batches of a global batch, those of one moment on all ranks side by side."""
        if self._cut is None or self._cut[0] != (epoch, batch):
            rows, pieces = self._global_batch(epoch, batch), self.accumulate * self.world_size
            if self.by_length:
                widths = [self.dataset[row].widths for row in rows]
                groups = cut(list(map(max, widths)), min(pieces, len(rows)), sequences=list(map(len, widths)))
                parts = [[rows[place] for place in group] for group in groups]
            else:
                size = math.ceil(len(rows) / pieces)
                parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            self._cut = ((epoch, batch), parts + [[]] * (pieces - len(parts)))
        return self._cut[1]

    @property
    def _pass_length(self) -> int:
        """Micro-batches of this rank in one pass over the dataset."""
        return math.ceil(self.rows_per_epoch(len(self.dataset), self.batch_size) / self.batch_size) * self.accumulate

    @classmethod
    def rows_per_epoch(cls, rows: int, batch_size: int) -> int:
        """How many of the rows one pass hands out."""
        return rows // batch_size * batch_size if cls.whole_batches else rows

    def _evaluation_batch(self, step: int) -> Any:
        rows = self._evaluation_rows[step]
        items = [self.dataset[row] for row in self._share(rows)]
        total = sum(self.dataset[row].weight for row in rows)
        return self.collate(items or [self.dataset[rows[0]].padding_row()], total / self.world_size)

    @cached_property
    def _evaluation_rows(self) -> list[list[int]]:
        """Rows of each evaluation batch over all ranks; by length, the batches still come in the order of their first
        rows, so that the first few hold short rows and long ones."""
        order, size = self._permutation(0), self.micro_batch_size * self.world_size
        if self.by_length:
            order = sorted(order, key=self._longest, reverse=True)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        return sorted(batches, key=min) if self.by_length else batches

    def _share(self, rows: list[int]) -> list[int]:
        start = self.rank * self.micro_batch_size
        return rows[start : start + self.micro_batch_size]

    def _permutation(self, epoch: int) -> list[int]:
        if not self.shuffle:
            epoch = 0
        if self._order is None or self._order[0] != epoch:
            order = list(range(len(self.dataset)))
            if self.shuffle:
                generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
                order = torch.randperm(len(self.dataset), generator=generator).tolist()
                if self.length_window > 1:
                    order = self._dealt(order, generator)
            self._order = (epoch, order)
        return self._order[1]

    def _dealt(self, order: list[int], generator: torch.Generator) -> list[int]:
        """The same rows, those of each window sorted by length, its batches in a random order."""
        size, whole = self.batch_size, len(order) // self.batch_size * self.batch_size
        dealt: list[int] = []
        for start in range(0, whole, size * self.length_window):
            rows = sorted(order[start : min(start + size * self.length_window, whole)], key=self._longest)
            for batch in torch.randperm(len(rows) // size, generator=generator).tolist():
                dealt += rows[batch * size : (batch + 1) * size]
        return dealt + order[whole:]

    def _longest(self, row: int) -> int:
        return max(self.dataset[row].widths)
