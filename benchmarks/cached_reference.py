"""How much time a DPO or KTO run saves that asks its reference once, before the first step.

    python -m benchmarks.kit ASSETS --seed 0
    python -m benchmarks.cached_reference ASSETS --epochs 1 3 --repeats 5

Whole fits of `DPOModule` or `KTOModule` on the same rows, with and without ``cache_reference`` in turn. Prints the
median of each and of the quotients of neighbours, in seconds and in CPU seconds, and how far apart the weights end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor

from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.data.feedback import FeedbackData
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules import DPOModule, KTOModule

STAGES: dict[str, tuple[Any, Any]] = {"dpo": (DPOModule, ComparisonData), "kto": (KTOModule, FeedbackData)}


class Fit(NamedTuple):
    """One fit, loading and asking included."""

    seconds: float
    cpu_seconds: float  # of all threads, which others on the machine disturb less
    weights: Tensor  # at its end, [P]


def fit(stage: str, recipe: Pretrained, rows: Path, epochs: int, cached: bool) -> Fit:
    """Learn from the rows, with or without ``cache_reference``."""
    module_class, data_class = STAGES[stage]
    with tempfile.TemporaryDirectory() as folder:
        start, cpu_start = time.perf_counter(), time.process_time()
        torch.manual_seed(0)
        tokenizer = recipe.tokenizer()
        data = data_class(rows, None, tokenizer, batch_size=16, micro_batch_size=4, validation_fraction=0.0)
        optimizer = partial(torch.optim.AdamW, lr=1e-5)
        module = module_class(recipe, tokenizer, optimizer, cache_reference=cached)
        trainer = lightning.Trainer(
            accelerator="auto", devices=1, max_epochs=epochs, accumulate_grad_batches=data.accumulate_for(1),
            default_root_dir=folder, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Fit(seconds, cpu_seconds, torch.cat([weight.detach().flatten() for weight in module.policy.parameters()]))


def compare(stage: str, recipe: Pretrained, rows: Path, epochs: int, repeats: int) -> str:
    """One line: medians with and without, the median quotient, and the distance of the weights."""
    pairs = [tuple(fit(stage, recipe, rows, epochs, cached) for cached in (False, True)) for _ in range(repeats)]
    parts = []
    for name, unit in (("seconds", "s"), ("cpu_seconds", "CPU s")):
        plain, cached = ([getattr(pair[way], name) for pair in pairs] for way in (0, 1))
        quotients = [a / b for a, b in zip(plain, cached, strict=True)]
        parts.append(
            f"{statistics.median(plain):.2f} {unit}, cached {statistics.median(cached):.2f} {unit}, "
            f"{statistics.median(quotients):.2f} times as fast ({min(quotients):.2f} to {max(quotients):.2f})"
        )
    before, after = (ran.weights for ran in pairs[-1])
    gap = float((after - before).norm() / before.norm())
    return f"{stage} {epochs} epochs: {'; '.join(parts)}; weights {gap:.0e} apart"


def feedback(rankings: Path, folder: Path) -> Path:
    """The answers of pairs, each called good or bad."""
    file = folder / "feedback.jsonl"
    rows = [json.loads(line) for line in rankings.read_text().splitlines()]
    labelled = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in rows
        for name in ("chosen", "rejected")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    return file


def main(arguments: list[str] | None = None) -> None:
    """The command above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, help="folder of benchmarks.kit")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--rows", type=int, default=128, help="pairs to learn from")
    parser.add_argument("--lora", action="store_true", help="train adapters of rank 8 instead of the weights")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=UserWarning)
    recipe = Pretrained(str(given.assets / "model"), lora={"r": 8} if given.lora else None)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as scratch:
        pairs = Path(scratch) / "pairs.jsonl"
        pairs.write_text("\n".join((given.assets / "pref.jsonl").read_text().splitlines()[: given.rows]) + "\n")
        rows = {"dpo": pairs, "kto": feedback(pairs, Path(scratch))}
        for stage in given.stages:
            for epochs in given.epochs:
                print(compare(stage, recipe, rows[stage], epochs, given.repeats), flush=True)


if __name__ == "__main__":
    main()
