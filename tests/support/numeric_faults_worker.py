"""One rank of two: ``python -m tests.support.numeric_faults_worker FOLDER`` breaks numbers on the second rank alone."""

import sys
import traceback
from pathlib import Path

import torch

import tests.conftest  # noqa: F401  (threads and no network)
from rlhf_lightning.errors import NumericalError
from tests.support.numeric_faults import Break, Watch, fit, module_of
from tests.support.strategies_worker import WORLD, ddp, fsdp2

CASES = [(ddp, "sft", "loss"), (ddp, "ppo", "logits"), (fsdp2, "ppo", "score")]


def run(folder, where, stage, place):
    """A fault in step 2 of 3, and then one in every step."""
    watch, settings = Watch(), {"micro_batch_size": 1} if stage == "ppo" else {}
    value = float("inf") if place == "score" else float("nan")
    options = {"micro": 1, "data": folder}
    name = f"{where.__name__}-{stage}-{place}"

    def go(name, steps, callbacks):
        return fit(stage, folder / name, steps, module_of(stage, **settings), callbacks, **options, **where())[0]

    module = go(name, 3, [Break(place, [2], value, 1), watch])
    result = {"weights": watch.weights, "skipped": module.guard.skipped}
    try:
        go(f"{name}-all", 5, [Break(place, range(9), value, 1)])
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
