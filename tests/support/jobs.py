"""Jobs of a few steps, one of each phase, that tell everything about how they went; for one or more ranks."""

import dataclasses
import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning
import torch
from torch.utils._pytree import tree_leaves

from rlhf_lightning.callbacks import DurableCheckpoint, History
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.functional.kto import kto_loss
from rlhf_lightning.models import ScalarModel
from rlhf_lightning.modules import RewardModule, SFTModule
from rlhf_lightning.optim.schedules import linear
from tests.support import offline, phases, tiny

ADAM = partial(torch.optim.AdamW, lr=1e-2)


def sft(folder, steps):
    data = DemonstrationData(
        folder / "demonstrations.jsonl", None, tiny.tokenizer(), batch_size=4, micro_batch_size=2,
        validation_fraction=0.0,
    )  # fmt: skip
    return SFTModule(tiny.policy(), tiny.tokenizer(), ADAM, linear), data


def reward(folder, steps):
    file = folder / "rankings.jsonl"
    data = ComparisonData(file, file, tiny.tokenizer(), batch_size=2, micro_batch_size=1)
    torch.manual_seed(1)
    model = ScalarModel.from_policy(tiny.policy()).model
    torch.nn.init.normal_(model.score.weight)
    return RewardModule(model, tiny.tokenizer(), ADAM), data


def dpo(folder, steps):
    module = offline.preference(adam=True, lr=1e-2, reference=tiny.policy(1, scale=2.0), nll_coef=0.1)
    return module, offline.pairs(folder / "eight_rankings.jsonl", 1, 4)


def kto(folder, steps):
    module = offline.unpaired(adam=True, lr=1e-2, loss=kto_loss, reference=tiny.policy(1, scale=2.0))
    return module, offline.answers(folder / "feedback.jsonl", 1, 4)


def ppo(folder, steps):
    data = PromptData(
        folder / "prompts.jsonl", None, tiny.tokenizer(), batch_size=4, rollouts=steps, validation_fraction=0.0
    )
    return phases.ppo_module(optimizer=partial(ADAM, lr=1e-4)), data  # slow enough to stay near its reference


PHASES = {"sft": sft, "reward": reward, "dpo": dpo, "kto": kto, "ppo": ppo}


class Story(NamedTuple):
    """What a job left behind; equal for jobs that went the same way to the last bit."""

    weights: str
    optimizer: str
    progress: str
    history: list[list[str]]  # without the clocks
    order: list[str]  # of the batches of the steps this job took itself


def write(folder: Path) -> Path:
    """The data files of all phases."""
    phases.write(folder)
    shutil.move(offline.rankings(folder), folder / "eight_rankings.jsonl")
    offline.feedback(folder)
    return phases.write(folder)


def tell(phase: str, steps: int, data: Path, run: Path, resume: Path | None = None, world: int = 1, **options) -> Story:
    """Run the job, or the rest of it, with a checkpoint after every step; two steps are an epoch."""
    module, rows = PHASES[phase](data, steps)
    order = _Order()
    callbacks = [
        order,
        History(run / "history.csv", 1),
        DurableCheckpoint(run / "checkpoints", every_n_steps=1, keep=99),
    ]
    accumulate = 1 if phase == "ppo" else rows.accumulate_for(world)
    fit = phases.trainer(
        accumulate,
        1 if phase == "ppo" else steps // 2,
        callbacks,
        checkpointing=True,
        plugins=[_Snapshots()],
        **options,
    )
    fit.fit(module, datamodule=rows, ckpt_path=resume)
    meet()
    kl = module.kl_controller.state_dict() if phase == "ppo" else None
    progress = [fit.global_step, kl, module.progress(), module.rank_state()]
    return Story(digest(module.state_dict()), digest(fit.optimizers[0].state_dict()), digest(progress),
                 history(run / "history.csv"), order.seen)  # fmt: skip


def points(run: Path) -> list[Path]:
    """Every place where the job can be taken up, first one first."""
    return checkpoints(run / "checkpoints")[::-1]


def take_up(phase: str, steps: int, data: Path, run: Path, point: Path, other: Path, **options) -> Story:
    """The rest of the job from a checkpoint, in another folder.

    The history there is as it was then, or, at every second checkpoint, has the rows that came later, as after a kill.
    """
    if first():
        other.mkdir(parents=True)
        then = run / "then" / f"{point.name}.csv"
        shutil.copy(then if int(point.name[-1]) % 2 else run / "history.csv", other / "history.csv")
    meet()
    return tell(phase, steps, data, other, resume=point, **options)


def together() -> bool:
    """Whether there are several ranks."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def first() -> bool:
    """Whether this rank writes the files."""
    return not together() or torch.distributed.get_rank() == 0


def meet() -> None:
    """Wait for the other ranks."""
    if together():
        torch.distributed.barrier()


def digest(state) -> str:
    """SHA-256 of every tensor, number and word of a state."""
    found = hashlib.sha256()
    for leaf in tree_leaves(state):
        if isinstance(leaf, torch.Tensor):
            leaf = leaf.to_local() if hasattr(leaf, "to_local") else leaf
            found.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()


def history(file: Path) -> list[list[str]]:
    """The rows without the columns that tell the time."""
    rows = [line.split(",") for line in file.read_text().splitlines()] if file.exists() else [[]]
    clocks = {i for i, name in enumerate(rows[0]) if name == "seconds" or name.startswith("perf/")}
    return [[cell for i, cell in enumerate(row) if i not in clocks] for row in rows]


class _Order(lightning.Callback):
    """What each batch held, and in PPO what was answered."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
        experience = getattr(module, "last_experience", None)
        answers = [] if experience is None else [experience.rollout.response_ids]
        self.seen.append(digest([value for value in values if isinstance(value, torch.Tensor)] + answers))


class _Snapshots(DurableCheckpointIO):
    """Keeps the history file as it is when a checkpoint is complete."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        then = path.parent.parent / "then"
        then.mkdir(exist_ok=True)
        shutil.copy(path.parent.parent / "history.csv", then / f"{path.name}.csv")
