"""The rows of a measurement: chosen from the assets, and put into the order in which our loader hands them out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from benchmarks.flops import Pair
from rlhf_lightning.data.loader import ShardedLoader

Row = dict[str, Any]


class Rows(NamedTuple):
    """Files of both sides, and the tokens of each sequence in the order of learning."""

    ours: Path  # in the order of the assets; our loader shuffles by the seed
    peers: Path  # in the order in which our loader hands them out
    sequences: list[list[Pair]]  # for each row the tokens of prompt and answer, EOS included
    units: int  # rows, as both sides count them


@dataclass(frozen=True)
class _Place:
    """A row as the loader wants it."""

    index: int
    weight: int = 1

    def padding_row(self) -> _Place:
        return self


def choose_rows(
    assets: Path, kind: str, count: int, batch: int, limits: tuple[int, int], folder: Path, full: bool = False
) -> Rows:
    """Write the first ``count`` rows that fit to ``folder``; starts again at the first where there are too few.

    Args:
        assets: folder with the files and ``model/``.
        kind: sft, pref, rankings or prompts.
        count: rows, a multiple of ``batch``.
        batch: rows of an optimizer step.
        limits: tokens of a prompt, and of prompt and answer together.
        folder: where to.
        full: join completions of sft rows until nothing more fits, so that all sequences are about as long.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(assets / "model"))

    def lengths(row: Row) -> list[Pair]:
        prompt = len(tokenizer(row["prompt"]).input_ids)
        sizes = [len(tokenizer(answer, add_special_tokens=False).input_ids) + 1 for answer in answers_of(row)]
        return [(prompt, size) for size in sizes] or [(prompt, 0)]

    fitting = _fitting(assets / f"{kind}.jsonl", lengths, limits)
    chosen = list(itertools.islice(_joined(fitting, lengths, limits[1]) if full else fitting, count))
    order = _order(count, batch)
    folder.mkdir(parents=True, exist_ok=True)
    ours, peers = folder / f"{kind}.ours.jsonl", folder / f"{kind}.peers.jsonl"
    _write(ours, [row for row, _ in chosen])
    _write(peers, [part for place in order for part in as_pairs(chosen[place][0])])
    return Rows(ours, peers, [chosen[place][1] for place in order], count)


def answers_of(row: Row) -> list[str]:
    """The given answers of a row of any kind."""
    if "completions" in row:
        return list(row["completions"])
    return [row[name] for name in ("completion", "chosen", "rejected") if name in row]


def as_pairs(row: Row) -> list[Row]:
    """A ranking as all its pairs, for who knows pairs only; any other row as it is.

    >>> [(p["chosen"], p["rejected"]) for p in as_pairs({"prompt": "", "completions": ["a", "b"], "ranks": [2, 1]})]
    [('b', 'a')]
    """
    if "completions" not in row:
        return [row]
    ranked = sorted(zip(row["ranks"], row["completions"], strict=True))
    return [
        {"prompt": row["prompt"], "chosen": better, "rejected": worse}
        for (rank, better), (other, worse) in itertools.combinations(ranked, 2)
        if rank < other
    ]


def _fitting(
    path: Path, lengths: Callable[[Row], list[Pair]], limits: tuple[int, int]
) -> Iterator[tuple[Row, list[Pair]]]:
    """Rows that neither side has to cut, over and over."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    measured = [(row, lengths(row)) for row in rows]
    fit = [(r, n) for r, n in measured if n[0][0] <= limits[0] and max(p + a for p, a in n) <= limits[1]]
    if not fit:
        raise SystemExit(f"{path}: no row has at most {limits[0]} tokens of prompt and {limits[1]} in all")
    return itertools.cycle(fit)


def _joined(
    rows: Iterator[tuple[Row, list[Pair]]], lengths: Callable[[Row], list[Pair]], longest: int
) -> Iterator[tuple[Row, list[Pair]]]:
    """Rows whose completion is that of several rows, as long as they fit."""
    row, size = next(rows)
    for other, _ in rows:
        longer = row | {"completion": row["completion"] + other["completion"]}
        grown = lengths(longer)
        if sum(grown[0]) > longest:
            yield row, size
            longer, grown = other, lengths(other)
        row, size = longer, grown


def _order(count: int, batch: int) -> list[int]:
    """The places of rows in the first pass of our loader with the default seed."""
    loader = ShardedLoader([_Place(i) for i in range(count)], lambda items, _: items, batch_size=batch, length_window=0)
    return [place.index for places in loader for place in places]


def _write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
