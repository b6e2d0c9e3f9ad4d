"""Stage `best_of_n`: sample n answers to each prompt, keep the best, and fine-tune on what was kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.errors import DataError
from rlhf_lightning.labelling.ranking import ranking_rows, write_rows
from rlhf_lightning.labelling.selection import best_rows, selection_metrics
from rlhf_lightning.rules.stages import KEPT, RANKINGS
from rlhf_lightning.stages.run import Run
from rlhf_lightning.stages.train import Metrics, train

log = logging.getLogger(__name__)


def run_best_of_n(run: Run) -> Metrics:
    """Write `demonstrations.jsonl` unless it is there, fine-tune on it; returns the metrics of both.

    All answers stand beside it as `rankings.jsonl`, for stages that learn from comparisons.
    """
    section = run.section("best_of_n")
    metrics = run.files.finished("best_of_n", section["output"])
    if metrics is None:
        run.files.begin("best_of_n")
        metrics = _select(run)
    return metrics | train(run, "best_of_n", section={**section, **section["sft"]})


def _select(run: Run) -> dict[str, float]:
    """Sample, score, keep the best and write them with provenance; returns what it was worth."""
    section = run.section("best_of_n")
    parents = run.parents({"policy": section["policy"], "data": section["data"]["train"]})
    scorer = run.build(run.config["scorer"])
    records = run.sample(section, section["policy"], [scorer], section["n"], title=run.title("best_of_n"))
    rows = best_rows(records, scorer.name, section["n"])
    if not rows:
        raise DataError(
            f"best_of_n: of {len(records)} answers none is both finished and not empty; raise "
            "sampling.max_new_tokens or fine-tune the policy first"
        )
    found = selection_metrics(records, rows, scorer.name, section["n"])
    metrics = {f"best_of_n/{name}": value for name, value in found.items()}
    if run.is_first:
        _tell(found, section["n"])
        provenance = run.provenance("best_of_n", metrics, parents)
        rankings = ranking_rows(records, scorer.name)

        def write(folder: Path) -> None:
            write_rows(folder / KEPT, rows)
            write_rows(folder / RANKINGS, rankings)

        write_folder(Path(section["output"]), write, provenance)
    run.wait()
    return metrics


def _tell(found: Mapping[str, float], n: int) -> None:
    curve = ", ".join(f"{name.rpartition('_')[2]}: {found[name]:.3f}" for name in found if name.startswith("expected"))
    log.info(
        "best of %d for %d prompts: mean score %.3f, kept %.3f (%d answers); expected best of %s; KL at most %.2f nats",
        n,
        found["prompts"],
        found["score_all"],
        found["score_kept"],
        found["kept"],
        curve,
        found["kl_bound"],
    )
