"""Stage `sft`: demonstrations to the reference policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.stages.run import Run, scalars


def run_sft(run: Run) -> dict[str, float]:
    """Fine-tune and export; returns the last metrics."""
    return fine_tune(run, "sft", run.section("sft"))


def fine_tune(run: Run, stage: str, section: Mapping[str, Any]) -> dict[str, float]:
    """The same by another ``section`` of the config; ``stage`` names checkpoints, history and provenance."""
    parents = run.parents({"policy": section["policy"], "data": section["data"]["train"]})
    policy = run.model(section["policy"])
    tokenizer = policy.tokenizer()
    data = run.build(section["data"], tokenizer=tokenizer)
    module = run.build(
        section["module"],
        policy=policy,
        tokenizer=tokenizer,
        optimizer=run.build(section["optimizer"]),
        scheduler=run.build(section["scheduler"]),
    )
    trainer = run.trainer(stage, max_epochs=section["max_epochs"])
    trainer.accumulate_grad_batches = data.accumulate_for(trainer.world_size)
    run.fit(stage, trainer, module, data)
    metrics = scalars(trainer)
    module.export(section["output"], run.provenance(stage, metrics, parents))
    return metrics
