"""What the stages `dpo` and `kto` share: given answers in, a policy out."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.stages.run import Run, scalars, verify_sources


def train_offline(run: Run, stage: str, loss: Any) -> dict[str, float]:
    """Fit the module of a stage to its data and export the policy; returns the last metrics.

    Args:
        run: the run.
        stage: name of the stage and of its section.
        loss: the loss slot of the module, built.
    """
    section = run.section(stage)
    files, reference = section["data"]["train"], section["reference"]
    verify_sources(files)
    parents = run.parents({"policy": section["policy"], "reference": reference, "data": files})
    policy = run.model(section["policy"])
    tokenizer = policy.tokenizer()
    module = run.build(
        section["module"],
        policy=policy,
        tokenizer=tokenizer,
        optimizer=run.build(section["optimizer"]),
        scheduler=run.build(section["scheduler"]),
        loss=loss,
        reference=run.model(reference) if reference else None,
    )
    data = run.build(section["data"], tokenizer=tokenizer)
    trainer = run.trainer(stage, max_epochs=section["max_epochs"])
    trainer.accumulate_grad_batches = data.accumulate_for(trainer.world_size)
    run.fit(stage, trainer, module, data)
    metrics = scalars(trainer)
    module.export(section["output"], run.provenance(stage, metrics, parents))
    return metrics
