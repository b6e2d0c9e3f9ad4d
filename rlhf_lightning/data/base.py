"""What the four data modules share: reading, checking, splitting, encoding, loading, resuming."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.loader import MICRO_BATCHES, Item, ShardedLoader, T, split_batch
from rlhf_lightning.data.readers.files import LocatedRow
from rlhf_lightning.data.rows.repeats import canonical, count_repeats, identity, prompt_identity
from rlhf_lightning.data.rows.shape import AS_IT_IS, Shape
from rlhf_lightning.data.rows.types import StageKind
from rlhf_lightning.data.rows.validate import load_rows
from rlhf_lightning.data.screen import encode_sound
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import Row

log = logging.getLogger(__name__)


class NoValidation(list[Any]):
    """A loader without batches; Lightning takes no ``None`` here, and warns of any empty loader by its class name."""


Paths = str | Path | Sequence[str | Path]


class RowDataModule(LightningDataModule, Generic[T]):
    """Rows of files as batches. ``report`` counts what became of them; validation counts begin with ``validation_``.

    Without a validation file, ``validation_fraction`` of the training rows is held out by ``seed``; rows with the same
    prompt stay on one side (`group_by_prompt`) where that can be done.

    Args:
        train: a file, a folder of files, or a list of them.
        validation: the same; None holds rows out of ``train``.
        tokenizer: turns rows into ids.
        batch_size: rows per optimizer step, over all ranks.
        micro_batch_size: rows a rank holds at once, see `ShardedLoader`; None takes its whole share.
        validation_fraction: share of the rows to hold out, in [0, 1); 0 means no validation.
        seed: of the split and of the shuffling.
        length_window: cut batches into micro-batches of rows of similar length (1), or in the order of the rows (0);
            above 1 the rows of so many training batches are dealt out again by length, see `ShardedLoader`.
        max_bad_rows: rows of ``train``, and as many of ``validation``, that may be left out because they cannot be
            used; they are counted (``bad_rows``) and the first are named in a warning.
        shape: how the columns of the files are read; None takes our own and those of well-known formats.
    """

    kind: ClassVar[StageKind]
    unit: ClassVar[str] = "rows"  # what a batch counts
    key: str = ""  # of the node that made it, with a dot, for messages
    group_by_prompt: ClassVar[bool] = True
    loader: ClassVar[type[ShardedLoader[Any]]] = ShardedLoader

    def __init__(
        self,
        train: Paths,
        validation: Paths | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        validation_fraction: float,
        seed: int,
        length_window: int,
        max_bad_rows: int,
        shape: Shape | None,
    ) -> None:
        super().__init__()
        require("batch_size", batch_size, at_least=1)
        require("micro_batch_size", micro_batch_size, at_least=1)
        require("validation_fraction", validation_fraction, at_least=0, below=1)
        require("length_window", length_window, at_least=0)
        require("max_bad_rows", max_bad_rows, at_least=0)
        self.max_bad_rows, self.shape = max_bad_rows, shape or AS_IT_IS
        self.train, self.validation = _as_paths(train), _as_paths(validation)
        self.tokenizer = tokenizer
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)  # masks decide what counts, so any valid id serves
        self.pad_id = next((int(token) for token in ids if token is not None), 0)
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.validation_fraction, self.seed = validation_fraction, seed
        self.length_window = length_window
        self.report: dict[str, int] = {}
        self.train_items: list[T] = []
        self.val_items: list[T] = []
        self._is_read = False
        self._fingerprint = ""
        self._loader: ShardedLoader[T] | None = None
        self._state: dict[str, Any] = {}

    def convert(self, row: Row) -> Row:
        """Override for files with other columns: a row as it stands in the file, as one of a type in docs/data.md."""
        return row

    @abstractmethod
    def encode(self, rows: list[LocatedRow], counts: Counter[str]) -> list[T]:
        """Items of the rows that can be used; what happened to the others goes into ``counts``."""

    @abstractmethod
    def collate(self, items: list[T], denominator: float) -> Any:
        """The batch of these items."""

    def setup(self, stage: str | None = None) -> None:
        """Read, check and encode all rows, once.

        Raises:
            DataError: unusable rows, none left after filters, or fewer than one batch for training.
        """
        if not self._is_read:
            self._read()
        if stage in (None, "fit") and len(self.train_items) < self.batch_size:
            held = 0 if self.validation else self.report["validation_rows"]
            why = ", ".join(filter(None, [f"{held} {self.unit} held out" if held else "", self._outcome()]))
            size = f"{self.key}batch_size"
            raise DataError(
                f"{len(self.train_items)} training {self.unit} are left of {self.report['rows']} rows in"
                f" {', '.join(map(str, self.train))} ({why or 'nothing dropped'}), but {size} asks for"
                f" {self.batch_size} {self.unit}: the first batch would not be full; add rows or lower {size}."
            )

    def _read(self) -> None:
        train, bad = load_rows(self.train, self.kind, self.max_bad_rows, self.convert, self.shape)
        validation, bad_validation = load_rows(self.validation, self.kind, self.max_bad_rows, self.convert, self.shape)
        read = len(train) + bad
        if not self.validation:
            train, validation = self._hold_out(train)
        repeats = count_repeats(self.kind, [row.row for row in train], [row.row for row in validation])
        self.train_items, counts = self._encode(train, "training", self.train, bad)
        counts["bad_rows"] += bad
        files, before = (self.validation, bad_validation) if self.validation else (self.train, counts["bad_rows"])
        self.val_items, val_counts = self._encode(validation, "validation", files, before)
        val_counts["bad_rows"] += bad_validation
        report = {"rows": read, "train_rows": len(self.train_items), "validation_rows": len(self.val_items)}
        both = counts | {f"validation_{name}": count for name, count in val_counts.items()}
        self.report = report | repeats | both
        self._fingerprint = _fingerprint(train, self.train_items)
        self._is_read = True
        if self._outcome() and self._place()[0] == 0:
            log.warning("%s: %s", ", ".join(map(str, self.train)), self._outcome())

    def _encode(self, rows: list[LocatedRow], split: str, files: list[Path], bad: int) -> tuple[list[T], Counter[str]]:
        items, counts = encode_sound(self.encode, rows, self.max_bad_rows, bad)
        if rows and not items:
            outcome = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count)
            raise DataError(
                f"none of the {len(rows)} {split} rows of {', '.join(map(str, files))} is left ({outcome}); fix them,"
                " or raise the length limit if they are too long."
            )
        return items, counts

    def _hold_out(self, rows: list[LocatedRow]) -> tuple[list[LocatedRow], list[LocatedRow]]:
        wanted = min(max(round(self.validation_fraction * len(rows)), 1), len(rows) - 1)
        if not self.validation_fraction or wanted < 1:
            return rows, []
        keys = [identity(row.row, self.kind) for row in rows]
        held = self._pick([prompt_identity(r.row, self.kind) for r in rows], wanted) if self.group_by_prompt else set()
        held = held or self._pick(keys, wanted) or self._pick([str(i) for i in range(len(rows))], wanted)
        return [r for i, r in enumerate(rows) if i not in held], [r for i, r in enumerate(rows) if i in held]

    def _pick(self, keys: list[str], wanted: int) -> set[int]:
        """At most ``wanted`` rows, by whole groups of equal keys in a seeded order."""
        groups: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            groups.setdefault(key, []).append(index)
        members = list(groups.values())
        held: set[int] = set()
        for index in torch.randperm(len(members), generator=torch.Generator().manual_seed(self.seed)).tolist():
            if len(held) + len(members[index]) <= wanted:
                held.update(members[index])
        return held

    def _outcome(self) -> str:
        """What a user should know about the rows; empty if all is well."""
        quiet = ("rows", "tokens", "pairs")
        return ", ".join(f"{n} {name}" for name, n in self.report.items() if n and not name.endswith(quiet))

    @property
    def num_train_rows(self) -> int:
        """Rows that training draws from."""
        return len(self.train_items)

    def accumulate_for(self, world_size: int) -> int:
        """Micro-batches that each rank accumulates for one optimizer step."""
        return split_batch(self.batch_size, self.micro_batch_size, world_size, self.length_window > 0)[1]

    @property
    def accumulate(self) -> int:
        """`accumulate_for` the world size of the attached trainer (1 without a trainer)."""
        return self.accumulate_for(self._place()[1])

    def train_dataloader(self) -> ShardedLoader[T]:
        """The training stream; goes on where the loaded checkpoint stopped."""
        overfit = getattr(self.trainer, "overfit_batches", 0)
        self._loader = self._make_loader(self.train_items, shuffle=not overfit, training=True)
        if overfit:
            micro = round(overfit * len(self._loader)) if isinstance(overfit, float) else overfit
            few = self.train_items[: max(1, math.ceil(micro / self.accumulate)) * self.batch_size]
            self._loader = self._make_loader(few, shuffle=False, training=True)
        if self._state:
            self._go_on(self._loader)
        return self._loader

    def val_dataloader(self) -> ShardedLoader[T] | NoValidation:
        """All validation rows; without any, an empty loader that makes Lightning skip validation."""
        if self.val_items:
            return self._make_loader(self.val_items, shuffle=False, training=False)
        warnings.filterwarnings("ignore", message=f".*`{NoValidation.__name__}` across ranks is zero")
        return NoValidation()

    def _make_loader(self, items: list[T], *, shuffle: bool, training: bool) -> ShardedLoader[T]:
        rank, world_size = self._place()
        share = self.batch_size / world_size
        return self.loader(
            items,
            self.collate,
            batch_size=self.batch_size if training else math.ceil(share) * world_size,  # any size where nobody learns
            micro_batch_size=self.micro_batch_size,
            rank=rank,
            world_size=world_size,
            shuffle=shuffle,
            seed=self.seed,
            training=training,
            length_window=self.length_window,
        )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def state_dict(self) -> dict[str, Any]:
        """Position and identity of the training data (at an epoch's end Lightning does not restore its own copy)."""
        return {} if self._loader is None else self._geometry() | {"position": self._loader.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where the checkpoint stopped; the next training loader goes on there."""
        self._state = dict(state_dict)
        if self._loader is not None and self._state:  # sharding strategies make the loader first
            self._go_on(self._loader)

    def _go_on(self, loader: ShardedLoader[T]) -> None:
        self._check_state(self._state)
        loader.load_state_dict({"position": self._state["position"]})
        self._state = {}

    def _geometry(self) -> dict[str, Any]:
        return {
            "data": self._fingerprint,
            "seed": self.seed,
            "batch_size": self.batch_size,
            MICRO_BATCHES: self.accumulate,
            "length_window": self.length_window,
            "rows_per_epoch": self.loader.rows_per_epoch(len(self.train_items), self.batch_size),
        }

    def _check_state(self, state: dict[str, Any]) -> None:
        now = self._geometry()
        older = len(self.train_items) // self.batch_size * self.batch_size  # they left the rest out
        state = {"length_window": 0, "rows_per_epoch": older} | state  # and cut in the order of the rows
        if state["data"] != now["data"]:
            raise DataError(
                f"{', '.join(map(str, self.train))}: the training rows are not those of the checkpoint (SHA-256"
                f" {state['data'][:12]} then, {now['data'][:12]} now); restore the file, its order and the tokenizer,"
                " or start a new run from the exported model."
            )
        changed = [f"{name} {state[name]} -> {value}" for name, value in now.items() if state[name] != value]
        if changed:
            raise ConfigError(
                f"the run cannot be resumed with {', '.join(changed)}: its position in the data would be lost;"
                " use the sizes of the checkpoint, or start a new run from the exported model."
            )


def _as_paths(paths: Paths | None) -> list[Path]:
    if paths is None:
        return []
    listed = [paths] if isinstance(paths, (str, Path)) else paths
    return [Path(path).expanduser() for path in listed]


def _fingerprint(rows: Sequence[LocatedRow], items: Sequence[Item]) -> str:
    """Of all columns, which reward functions may read, and of the tokens, which the tokenizer decides."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical(row.row).encode())
    for item in items:
        ids = item.token_ids()
        digest.update(array("q", [len(ids), *ids]).tobytes())
    return digest.hexdigest()
