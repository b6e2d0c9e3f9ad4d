"""One of two ranks: ``python -m tests.support.sources_worker RANK FOLDER`` writes the statistics it ends with."""

import json
import sys
from pathlib import Path

import torch

import tests.conftest  # noqa: F401  (threads and no network)
from rlhf_lightning.scoring.transforms import RunningNormalise
from tests.scoring.test_sources import rollout

SCORES = [[[0.0, 2.0], [1.0, 1.0]], [[4.0, 10.0], [float("nan"), 1.0]]]  # by rank, then by call


def main(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    running = RunningNormalise()
    for scores in SCORES[rank]:
        last = running(torch.tensor(scores), rollout())
    (folder / f"{rank}.json").write_text(json.dumps({"state": running.state_dict(), "last": last.tolist()}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
