"""Stage `ppo`: policy and scorer to a better policy."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from rlhf_lightning.callbacks import ScoreMonitor
from rlhf_lightning.stages.run import Run, scalars

PARTS = ("sampling", "advantage", "policy_loss", "settings", "optimizer", "scheduler")


def run_ppo(run: Run) -> dict[str, float]:
    """Train, keep the best policy within the KL limit, and export it; returns the last metrics."""
    section = run.section("ppo")
    parents = run.parents({"policy": section["policy"], "data": section["data"]["train"]})
    parts = {part: run.build(section[part]) for part in PARTS}
    policy = run.model(section["policy"])
    tokenizer = policy.tokenizer()
    module = run.build(
        section["module"],
        policy=policy,
        tokenizer=tokenizer,
        scorer=run.build(run.config["scorer"]),
        critic=_critic(run, section["critic"]),
        engine=run.build(run.config["rollout"]),
        kl_controller=run.build(run.config["kl"]),
        **parts,
    )
    data = run.build(section["data"], tokenizer=tokenizer)
    best = run.build(section["best_policy"]) if section["best_policy"] else None
    callbacks = [*_monitors(run), *([best] if best else [])]
    trainer = run.trainer("ppo", callbacks, max_epochs=1, limit_val_batches=0)
    run.fit("ppo", trainer, module, data)
    metrics = scalars(trainer)
    if best is not None and best.best is not None:
        metrics |= {f"best/{name}": float(value) for name, value in best.best.items()}
    module.export(section["output"], run.provenance("ppo", metrics, parents))
    return metrics


def _critic(run: Run, given: str) -> Any:
    return given if given in ("policy", "shared_trunk") else run.model(given)


def _monitors(run: Run) -> list[Callback]:
    judge = run.config["judge"]
    return [ScoreMonitor(run.build(judge))] if run.section("ppo")["monitor"] and judge else []
