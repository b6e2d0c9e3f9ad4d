"""One rank of two, ``python -m tests.support.offline_worker FOLDER``: given answers under DDP and FSDP2."""

import sys
import traceback
from pathlib import Path

import torch

import tests.conftest  # noqa: F401  (threads and no network)
from rlhf_lightning.functional.kto import kto_loss
from rlhf_lightning.functional.preference import dpo_loss
from rlhf_lightning.functional.reference_free import simpo_loss
from tests.support import offline, phases, tiny
from tests.support.strategies_worker import WORLD, ddp, fsdp2, logged


def dpo(folder, world_size=1, loss=dpo_loss, **options):
    """Three epochs of two steps, validated on three rows, of which one rank of two has a filler in place of one."""
    reference = None if loss is simpo_loss else tiny.policy(1, scale=2.0)
    module = offline.preference(lr=0.1, loss=loss, reference=reference, nll_coef=0.1)
    return fit(
        module, offline.pairs(folder / "rankings.jsonl", 1, 4, folder / "three_rankings.jsonl"), world_size, options
    )


def simpo(folder, world_size=1, **options):
    return dpo(folder, world_size, simpo_loss, **options)


def kto(folder, world_size=1, **options):
    module = offline.unpaired(lr=0.1, loss=kto_loss, reference=tiny.policy(1, scale=2.0))
    return fit(
        module, offline.answers(folder / "feedback.jsonl", 1, 4, folder / "three_answers.jsonl"), world_size, options
    )


def fit(module, data, world_size, options):
    run = phases.trainer(data.accumulate_for(world_size), 3, **options)
    run.fit(module, datamodule=data)
    return module, run


PHASES = {"dpo": dpo, "simpo": simpo, "kto": kto}
STRATEGIES = {"ddp": ddp, "fsdp2": fsdp2}


def main(folder: Path) -> None:
    for phase, learn in PHASES.items():
        for strategy, where in STRATEGIES.items():
            try:
                module, run = learn(folder, world_size=WORLD, **where())
                module.export(folder / f"{phase}_{strategy}", {"stage": phase})
                result = {"weights": phases.flat(module.policy), "logged": logged(run)}
                if phase != "simpo":
                    result["reference"] = phases.flat(module.frozen["reference"])
            except Exception:
                result = {"error": traceback.format_exc()}
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else "none"
            torch.save(result, folder / f"{phase}_{strategy}.{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
