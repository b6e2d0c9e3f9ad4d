"""Stage `score`: answers that are there already, by a reward model."""

from __future__ import annotations

import logging
from pathlib import Path

from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.data.exchanges import read_exchanges
from rlhf_lightning.evaluation.scored import scored, sentences, summary
from rlhf_lightning.labelling.ranking import write_rows
from rlhf_lightning.models import Pretrained
from rlhf_lightning.rules.stages import SCORED
from rlhf_lightning.scoring.reward_model import RewardModelScorer, statistics
from rlhf_lightning.stages.run import Run

log = logging.getLogger(__name__)


def run_score(run: Run) -> dict[str, float]:
    """Write `scored.jsonl`, the rows with their scores; returns how many, mean and standard deviation.

    Raises:
        DataError: a row without an answer, or that has a score already; names file and line.
        CheckpointError: no reward model is there.
    """
    section = run.section("score")
    parents = run.parents({"reward_model": section["reward"], "rows": section["rows"]})
    rows = read_exchanges(section["rows"])
    source = Pretrained(section["reward"], dtype=run.config["model"]["dtype"])
    scorer = RewardModelScorer(source, normalise=not section["raw"], micro_batch_size=section["micro_batch_size"]).to(
        run.predictor().strategy.root_device
    )
    done = list(scored(rows, scorer))
    found = summary(done)
    for sentence in sentences(found, not section["raw"] and statistics(section["reward"]) is not None):
        log.info(sentence)
    metrics = {f"score/{name}": value for name, value in found.items()}
    provenance = run.provenance("score", metrics, parents)
    write_folder(Path(section["output"]), lambda folder: write_rows(folder / SCORED, done), provenance)
    return metrics
