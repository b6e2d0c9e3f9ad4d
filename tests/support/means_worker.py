"""One rank of two: ``python -m tests.support.means_worker FOLDER`` saves means over both."""

import sys
from datetime import timedelta
from pathlib import Path

import torch

import tests.conftest  # noqa: F401  (threads and no network)
from rlhf_lightning.metrics.means import Means
from tests.support import jobs, phases


def sums(pairs, prompts, loss, hits):
    return {
        "num_pairs": torch.tensor(pairs), "num_prompts": torch.tensor(prompts),
        "loss": torch.tensor(loss), "accuracy": torch.tensor(hits),
    }  # fmt: skip


BATCHES = [[sums(3, 1, 0.1, 2), sums(1, 1, 0.7, 0)], [sums(6, 2, 1e6, 5)]]
PADDING = [[sums(3, 2, 0.5, 2)], [sums(0, 0, 0.0, 0)]]


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank, means, found = torch.distributed.get_rank(), Means({"": "num_pairs", "loss": "num_prompts"}), {}
    for name, batches in (("both", BATCHES), ("padding only", PADDING)):
        for batch in batches[rank]:
            means.update(batch)
        found[name] = means.compute()
        means.reset()
    if rank == 0:  # the other waits, as for the first rank of a run that makes the task's model
        (folder / "jobs").mkdir()
        jobs.write(folder / "jobs")
        phases.sft(folder / "jobs")
    torch.distributed.barrier()
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
