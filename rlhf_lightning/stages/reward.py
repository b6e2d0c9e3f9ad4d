"""Stage `reward`: rankings to a reward model."""

from __future__ import annotations

from rlhf_lightning.stages.run import Run, scalars, verify_sources


def run_reward(run: Run) -> dict[str, float]:
    """Fit and export the reward model with its score statistics; returns the last metrics."""
    section = run.section("reward")
    verify_sources(section["data"]["train"])
    parents = run.parents({"policy": section["policy"], "data": section["data"]["train"]})
    source = run.model(section["policy"], freeze_below=section["freeze_below"])
    tokenizer = source.tokenizer()
    data = run.build(section["data"], tokenizer=tokenizer)
    node = dict(section["module"])
    own = {"ranking_loss": run.build(node.pop("ranking_loss"))} if "ranking_loss" in node else {}
    module = run.build(
        node,
        model=source,
        tokenizer=tokenizer,
        optimizer=run.build(section["optimizer"]),
        scheduler=run.build(section["scheduler"]),
        **own,
    )
    trainer = run.trainer("reward", max_epochs=section["max_epochs"])
    trainer.accumulate_grad_batches = data.accumulate_for(trainer.world_size)
    run.fit("reward", trainer, module, data)
    metrics = scalars(trainer)
    stored = metrics | module.held_out
    module.export(section["output"], run.provenance("reward", stored, parents))
    return metrics
