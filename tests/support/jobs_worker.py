"""One rank of two: ``python -m tests.support.jobs_worker FOLDER STRATEGY STEPS EVERY PHASE ...``

Runs each phase, takes it up at every ``EVERY``-th step, and writes ``PHASE.RANK.json``: how many places there were and
which of them ended otherwise.
"""

import json
import sys
from pathlib import Path

import torch

import tests.conftest  # noqa: F401  (threads and no network)
from tests.support import jobs
from tests.support.strategies_worker import WORLD, ddp, fsdp2

WHERE = {"ddp": ddp, "fsdp2": fsdp2}


def compare(phase: str, strategy: str, steps: int, every: int, folder: Path) -> dict:
    """Take up one phase at every ``every``-th step and compare with the whole job."""
    run = folder / phase
    whole = jobs.tell(phase, steps, folder, run, world=WORLD, **WHERE[strategy]())
    points = jobs.points(run)[every - 1 :: every]
    other = []
    for point in points:
        place = folder / f"{phase}-{point.name}"
        rest = jobs.take_up(phase, steps, folder, run, point, place, world=WORLD, **WHERE[strategy]())
        same = rest.order == whole.order[-len(rest.order) :] and rest._replace(order=whole.order) == whole
        other += [] if same else [point.name]
    return {"places": len(points), "other": other, "rank": torch.distributed.get_rank()}


def main(folder: Path, strategy: str, steps: int, every: int, phases: list[str]) -> None:
    for phase in phases:
        found = compare(phase, strategy, steps, every, folder)
        (folder / f"{phase}.{found['rank']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
