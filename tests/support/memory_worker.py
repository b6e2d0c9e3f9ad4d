"""How much memory saving takes: prints bytes of the checkpoint, and bytes by which the process grew at most meanwhile.

``python -m tests.support.memory_worker FOLDER N`` trains two steps of a model of N times 4 MB, with Adam's state 12 MB.
"""

import re
import sys
from pathlib import Path

import lightning
import torch

import tests.conftest  # noqa: F401  (threads and no network)
from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO


class Large(lightning.LightningModule):
    """Matrices of 4 MB."""

    def __init__(self, count):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(1024, 1024, bias=False) for _ in range(count))

    def training_step(self, batch, batch_idx):
        return sum(layer.weight.square().mean() for layer in self.layers)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), foreach=False)


class Watch(DurableCheckpoint):
    """Looks at the memory around a save."""

    def save(self, trainer):
        for parameter in trainer.lightning_module.parameters():
            parameter.grad = None
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
        path = super().save(trainer)
        peak = status("VmHWM")
        size = sum(file.stat().st_size for file in path.iterdir())
        print(size, peak - before)


def status(name):
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    saver = Watch(Path(sys.argv[1]), every_n_steps=1)
    run = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, num_sanity_val_steps=0,
        enable_model_summary=False, callbacks=[saver], plugins=[DurableCheckpointIO()],
    )  # fmt: skip
    run.fit(Large(int(sys.argv[2])), train_dataloaders=torch.utils.data.DataLoader(torch.zeros(3, 1)))
