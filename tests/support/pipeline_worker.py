"""One rank of two of a pipeline that dies at a place: ``python -m tests.support.pipeline_worker FILE PLACE WORD ...``

``PLACE`` is where both ranks end without a message, such as ``step 2 of sft``, ``export sft`` or ``after sft``; with
``none`` they go through. Every place that is come to is added to ``FILE`` and the number of the rank.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import lightning

import tests.conftest  # noqa: F401  (threads and no network)
from rlhf_lightning.config.compose import compose
from rlhf_lightning.modules.base import RLHFModule
from rlhf_lightning.stages import pipeline

DIED = 77
stage = ""


def come_to(place: str) -> None:
    """Note the place, and end the process where that is what the place is for."""
    with Path(f"{sys.argv[1]}{os.environ['RANK']}").open("a") as file:
        file.write(f"{place}\n")
    if place == sys.argv[2]:
        os._exit(DIED)


class Steps(lightning.Callback):
    """Comes to a place before every step."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx % trainer.accumulate_grad_batches == 0:
            come_to(f"step {trainer.global_step} of {stage}")


def between(name, run_stage):
    """The stage with a place before and behind it."""

    def run(this):
        global stage
        stage = name
        come_to(f"before {name}")
        metrics = run_stage(this)
        come_to(f"after {name}")
        return metrics

    return run


def main(words: list[str]) -> None:
    load = pipeline.load_stage
    pipeline.load_stage = lambda run, entry: replace(found := load(run, entry), run=between(found.name, found.run))
    export = RLHFModule.export
    RLHFModule.export = lambda self, *given: (come_to(f"export {stage}"), export(self, *given))[1]
    node = "{_target_: tests.support.pipeline_worker.Steps}"
    pipeline.run(compose([*words, f"+callbacks.steps={node}", "trusted_targets=[tests]"]))


if __name__ == "__main__":
    from tests.support import pipeline_worker  # the module that the config names, and not this copy of it

    pipeline_worker.main(sys.argv[3:])
