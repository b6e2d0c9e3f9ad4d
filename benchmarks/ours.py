"""Our side of a measurement: one stage of the library, composed from its config and run by Lightning.

    python -m benchmarks.ours JOB.json

A callback times it; nothing else differs from ``python train.py`` with the overrides that `overrides_of` lists.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl

from benchmarks.clock import Clock, Phase, read_job, write_result
from rlhf_lightning.callbacks.steps import steps_done
from rlhf_lightning.config.compose import compose
from rlhf_lightning.models import Pretrained
from rlhf_lightning.types import ComparisonBatch, SFTBatch

STAGE = {"sft": "sft", "reward": "reward", "dpo": "dpo", "grpo": "ppo", "rloo": "ppo", "ppo": "ppo"}
FILE = {"sft": "demonstrations", "reward": "comparisons", "dpo": "comparisons", "ppo": "prompts"}
CLOCK: list[Clock] = []  # the clock of this process, for a callback that a config builds


class Meter(pl.Callback):
    """Laps and counts for the clock of this process, and the phases of each kind of module."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        clock = CLOCK[0]
        if pl_module.automatic_optimization:
            clock.time_method(trainer.strategy, "training_step", "forward")
            clock.time_method(trainer.strategy, "backward", "backward")
            clock.time_method(trainer.strategy, "optimizer_step", "optimizer")
        else:
            for method in ("generate", "score", "evaluate", "learn"):
                clock.time_method(pl_module, method, method)
        clock.begin()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, (SFTBatch, ComparisonBatch)):
            supervised = batch.mask if isinstance(batch, SFTBatch) else None
            CLOCK[0].count_batch(batch.input_ids, batch.attention_mask, supervised)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if steps_done(trainer) == len(CLOCK[0].laps):
            return  # inside gradient accumulation
        experience = getattr(pl_module, "last_experience", None)
        if experience is not None:
            CLOCK[0].count_answers(experience.rollout.prompt_mask, experience.rollout.mask)
        CLOCK[0].lap()


def overrides_of(job: dict[str, Any]) -> list[str]:
    """The command line of a job: which files, sizes that both sides share, and what makes them do the same.

    Beside sizes: no rows held out (the peer holds out none), a fixed KL penalty, and online no early stop of the
    updates, which would be less work.
    """
    learner, stage = job["learner"], STAGE[job["learner"]]
    words = [
        f"stage={stage}", "task=custom", "trainer=cpu", f"model.path={job['model']}", f"run_dir={job['folder']}/run",
        f"threads={job['threads']}", f"data.{FILE[stage]}={job['rows']}", f"{stage}.data.batch_size={job['batch']}",
        "overwrite=true", "trusted_targets=[benchmarks]", "+callbacks.meter._target_=benchmarks.ours.Meter",
        f"{stage}.data.validation_fraction=0",
    ]  # fmt: skip
    if stage != "ppo":
        words += [f"{stage}.data.max_length={job['max_length']}", f"+trainer.max_steps={job['warm_up'] + job['steps']}"]
        return [*words, *job["overrides"]]
    words += [
        f"algorithm={learner}", f"ppo.rollouts={job['warm_up'] + job['steps']}", "kl=fixed",
        f"kl.coef={job['kl_coef']}", f"ppo.data.max_prompt_length={job['max_prompt_length']}",
        f"sampling.max_new_tokens={job['max_new_tokens']}", f"ppo.settings.ppo_epochs={job['epochs']}",
        f"ppo.settings.group_size={job['group_size']}", "ppo.settings.max_approx_kl=null",
    ]  # fmt: skip
    if learner == "ppo":
        words += ["scorer=reward_model", f"scorer.model.path={job['reward_model']}"]
    else:
        words += ["scorer=function", "scorer.function=benchmarks.rewards.brevity"]
    return [*words, *job["overrides"]]


def run_bare(job: dict[str, Any], clock: Clock) -> None:
    """A plain loop over the batches and the loss of our SFT module, without Lightning, logging and callbacks."""
    import torch

    from rlhf_lightning.config.compose import safe_instantiate
    from rlhf_lightning.modules.sft import SFTModule

    section = compose([word for word in overrides_of(job) if "meter" not in word])["sft"]
    recipe = Pretrained(job["model"])
    module = SFTModule(recipe, recipe.tokenizer(), torch.optim.AdamW)
    module.build()
    optimizer = safe_instantiate(section["optimizer"])(module.policy.parameters())  # type: ignore[union-attr]
    data = safe_instantiate(section["data"], tokenizer=module.tokenizer)
    data.setup("fit")
    batches = list(data.train_dataloader())
    per_step = data.accumulate_for(1)
    clock.begin()
    for step in range(job["warm_up"] + job["steps"]):
        for batch in batches[step * per_step : (step + 1) * per_step]:
            clock.count_batch(batch.input_ids, batch.attention_mask, batch.mask)
            with Phase(clock, "forward"):
                loss = module.loss(batch)[0] / batch.denominator / per_step
            with Phase(clock, "backward"):
                loss.backward()
        with Phase(clock, "optimizer"):
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        clock.lap()


def main() -> None:
    """Run the job in the file named on the command line."""
    from benchmarks import ours  # the module that a config imports, not `__main__`

    job = read_job(sys.argv[1])
    clock = Clock(job["started"], job["device"])
    clock.watch_positions()
    ours.CLOCK.append(clock)
    if job["side"] == "bare":
        run_bare(job, clock)
    else:
        from rlhf_lightning.stages.pipeline import run

        run(compose(overrides_of(job)))
    write_result(job, clock.result(job["warm_up"]) | {"overrides": overrides_of(job)})


if __name__ == "__main__":
    main()
