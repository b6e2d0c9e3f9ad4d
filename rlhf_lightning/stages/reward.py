"""Stage `reward`: rankings to a reward model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint import read_provenance
from rlhf_lightning.checkpoint.places import write_file
from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.errors import ConfigError, NumericalError
from rlhf_lightning.evaluation.report import MOST_WRONG
from rlhf_lightning.evaluation.trust import accuracy_text, conclusion, doubts
from rlhf_lightning.metrics.preference_baselines import baselines
from rlhf_lightning.modules.formulas import check_ranking_loss
from rlhf_lightning.people.training import PEOPLE, ceiling_of
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.stages.places import HISTORY
from rlhf_lightning.stages.run import Run, scalars
from rlhf_lightning.stages.train import Metrics, train

log = logging.getLogger(__name__)


def run_reward(run: Run) -> Metrics:
    """Fit and export the reward model with its score statistics, unless it is worse than ``min_accuracy``.

    Returns:
        the last metrics.

    Raises:
        NumericalError: its held-out accuracy is below ``min_accuracy``; nothing is exported.
    """
    return train(run, "reward", _loss(run), model="model", found=lambda module: _judged(run, module))


def check_reward(run: Run) -> None:
    """Call the ranking loss, and look at what is asked of the result."""
    for loss in _loss(run).values():
        check_ranking_loss(loss)
    section = run.section("reward")
    least, data = section["min_accuracy"], section["data"]
    require("reward.min_accuracy", least, at_least=0, at_most=1)
    if least is not None and not data.get("validation") and not data.get("validation_fraction", 1):
        raise ConfigError(
            f"reward.min_accuracy={least}: there are no held-out rows to measure it on; set "
            "reward.data.validation_fraction above 0 or data.comparisons_validation=FILE"
        )


def _judged(run: Run, module: Any) -> dict[str, Any]:
    """What is kept of the held-out pairs; warns of a reward model that should not be used."""
    logged, data = scalars(module.trainer), module.trainer.datamodule
    found = dict(module.held_out)
    if isinstance(data, ComparisonData):
        found |= baselines(data.train_items, data.val_items)
    found |= _people(run.section("reward")["data"])
    if run.is_first:
        if sentence := conclusion(logged | found):
            log.info(sentence)
        _write_most_wrong(run, module)
    if reasons := doubts(logged | found):
        found["doubts"] = reasons
        if run.is_first:
            for reason in reasons:
                log.warning(reason)
    least = run.section("reward")["min_accuracy"]
    if least is not None and not logged.get("val/accuracy", -1.0) >= least:
        known = accuracy_text(logged | found) if "val/accuracy_low" in logged else "no held-out pair was seen"
        raise NumericalError(
            f"reward.min_accuracy={least}: the reward model is not good enough to go on with: {known}. Nothing is "
            "exported. Check the labels in data.comparisons, get more rankings, change reward.optimizer.lr or "
            "reward.max_epochs, or lower reward.min_accuracy"
        )
    return found


def _write_most_wrong(run: Run, module: Any) -> None:
    """Rows of the pairs to look at: is the model wrong there, or the label?"""
    text, file = partial(module.tokenizer.decode, skip_special_tokens=True), run.folder / HISTORY / MOST_WRONG
    rows = [
        {"prompt": text(pair.prompt), "chosen": text(pair.better), "rejected": text(pair.worse)}
        | {"score_chosen": pair.scores[0], "score_rejected": pair.scores[1]}
        for pair in module.most_wrong
    ]
    write_file(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if rows:
        log.info("the %d held-out pairs that it gets most wrong: %s", len(rows), file)


def _people(data: Mapping[str, Any]) -> dict[str, float]:
    """How far the people agree who made the rankings, as the folders that hold them say."""
    files = [file for key in ("train", "validation") for file in _listed(data.get(key))]
    records = [read_provenance(folder) or {} for folder in dict.fromkeys(Path(file).parent for file in files)]
    return ceiling_of(record[PEOPLE] for record in records if PEOPLE in record)


def _listed(files: Any) -> list[str]:
    return [files] if isinstance(files, str) else [str(file) for file in files or ()]


def _loss(run: Run) -> dict[str, Any]:
    """The loss; none where it is null, for a module of the user that takes none."""
    loss = run.build(run.section("reward")["loss"])
    return {} if loss is None else {"ranking_loss": loss}
