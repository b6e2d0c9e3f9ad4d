"""One rank of a run that others go on with: ``python -m tests.support.worlds_worker FOLDER JOB...``.

A job is ``PHASE:LAYOUT:FROM``: ten steps of a phase, saved after five, from the start or from what another one left.
"""

import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy

import tests.conftest  # noqa: F401  (threads and no network)
from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.sharded import DurableModelParallelStrategy
from rlhf_lightning.functional.preference import dpo_loss
from tests.support import offline, phases, tiny

STEPS = 5  # before and after
ADAM = partial(torch.optim.AdamW, lr=1e-3, foreach=False)


def layout(name, size):
    """Arguments of a Trainer."""
    if name == "single":
        return {}
    limit = timedelta(seconds=60)
    strategy = DDPStrategy(timeout=limit) if name == "ddp" else DurableModelParallelStrategy(timeout=limit)
    return {"strategy": strategy, "devices": size}


def supervised(folder, lora=False):
    data = phases.DemonstrationData(
        folder / "demonstrations.jsonl", None, tiny.tokenizer(), batch_size=4, micro_batch_size=1,
        validation_fraction=0.0,
    )  # fmt: skip
    policy = tiny.adapted(tiny.policy(), lora)
    return phases.SFTModule(policy, tiny.tokenizer(), ADAM, phases.linear), data


def preferences(folder):
    module = offline.preference(lr=1e-3, adam=True, loss=dpo_loss, reference=tiny.policy(1, scale=2.0))
    return module, offline.pairs(folder / "eight_rankings.jsonl", 1, 4)


def comparisons(folder):
    data = phases.ComparisonData(
        folder / "eight_rankings.jsonl", None, tiny.tokenizer(), batch_size=4, micro_batch_size=1,
        validation_fraction=0.0,
    )  # fmt: skip
    return phases.RewardModule(phases.reward_model().model, tiny.tokenizer(), ADAM), data


PHASES = {"reward": comparisons, "sft": supervised, "lora": partial(supervised, lora=True), "dpo": preferences}


def run(folder, phase, where, start, size):
    module, data = PHASES[phase](folder)
    name = f"{phase}-{where}-{size}" + (f"-from-{start}" if start else "")
    saver = DurableCheckpoint(folder / name, every_n_steps=STEPS, at_end=False)
    run = phases.trainer(data.accumulate_for(size), 5, [saver], checkpointing=True, **layout(where, size))
    source = folder / f"{phase}-{start}" / f"step-{STEPS:06d}" if start else None
    run.fit(module, datamodule=data, ckpt_path=source)
    weights, state = phases.flat(module.trained), run.optimizers[0].state_dict()["state"]
    kept = [value for own in state.values() for value in own.values()]
    moments = [value.full_tensor() if hasattr(value, "full_tensor") else value for value in kept]
    if run.global_rank == 0:
        found = {"weights": weights, "moments": torch.cat([m.flatten() for m in moments]), "steps": run.global_step}
        torch.save(found, folder / f"{name}.pt")


def work(folder, *jobs, size=1):
    for job in jobs:
        run(folder, *job.split(":"), size)


if __name__ == "__main__":
    work(Path(sys.argv[1]), *sys.argv[2:], size=int(os.environ["WORLD_SIZE"]))
