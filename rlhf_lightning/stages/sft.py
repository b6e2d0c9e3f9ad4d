"""Stage `sft`: demonstrations to the reference policy."""

from __future__ import annotations

from rlhf_lightning.stages.run import Run, required, scalars


def run_sft(run: Run) -> dict[str, float]:
    """Fine-tune and export; returns the last metrics."""
    section = run.section("sft")
    required(section, "sft", "data.train", "add data.demonstrations=FILE with rows of prompt+completion or messages")
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
    trainer = run.trainer("sft", max_epochs=section["max_epochs"])
    trainer.accumulate_grad_batches = data.accumulate_for(trainer.world_size)
    trainer.fit(module, datamodule=data)
    metrics = scalars(trainer)
    module.export(
        section["output"], run.provenance("sft", metrics, policy=section["policy"], data=section["data"]["train"])
    )
    return metrics
