"""One rank of two: ``python -m tests.faults.ranks FOLDER`` breaks numbers on the second rank alone."""

import sys
import traceback
from pathlib import Path

import torch

import tests.conftest  # noqa: F401  (threads and no network)
from rlhf_lightning.errors import NumericalError
from tests.faults.numbers import Break, Watch, fit, module_of
from tests.integration.worker import WORLD, ddp, fsdp2

PLACES = [("sft", "loss"), ("sft", "grad"), ("ppo", "loss"), ("ppo", "score"), ("ppo", "logits")]
CASES = [(where, *place) for where in (ddp, fsdp2) for place in PLACES if (where, place[1]) != (fsdp2, "grad")]


def run(folder, where, stage, place):
    """A fault in step 2 of 3, and then one in every step."""
    watch, settings = Watch(), {"micro_batch_size": 1} if stage == "ppo" else {}
    value = float("inf") if place == "score" else float("nan")
    options = {"micro": 1, "data": folder, **where()}
    name = f"{where.__name__}-{stage}-{place}"
    module, _ = fit(
        stage, folder / name, 3, module_of(stage, **settings), [Break(place, [2], value, 1), watch], **options
    )
    result = {"weights": watch.weights, "skipped": module.guard.skipped}
    try:
        fit(
            stage,
            folder / f"{name}-all",
            5,
            module_of(stage, **settings),
            [Break(place, range(9), value, 1)],
            **options,
        )
    except NumericalError as error:
        result["error"] = str(error)
    return result


def main(folder):
    for where, stage, place in CASES:
        try:
            result = run(folder, where, stage, place)
        except Exception:
            result = {"failed": traceback.format_exc()}
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else "none"
        torch.save(result, folder / f"{where.__name__}-{stage}-{place}.{rank}.pt")


if __name__ == "__main__":
    assert WORLD == 2
    main(Path(sys.argv[1]))
