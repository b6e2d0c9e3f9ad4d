"""One rank of two, where numbers break and memory runs out: ``python -m tests.support.two_ranks_worker FOLDER``."""

import os
import sys
import traceback
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tests.conftest  # noqa: F401  (threads and no network)
from rlhf_lightning.errors import NumericalError
from rlhf_lightning.training import ranks
from tests.support import phases
from tests.support.memory_faults import Gradients, Once, Small, SmallWithoutGradient, validated
from tests.support.numeric_faults import Break, Watch, data_of, fit, module_of
from tests.support.strategies_worker import WORLD, ddp, fsdp2

RANK = int(os.environ.get("RANK", "0"))
NUMBERS = [(ddp, "sft", "loss"), (ddp, "ppo", "logits"), (fsdp2, "ppo", "score")]
MEMORY = {  # what the first rank has, and what the second
    "sft": (Once({4: (2, "backward")}), Once({4: (1, "forward")})),
    "reward": (None, Small(3, "backward")),
    "dpo": (Small(3, "backward"), Small(4, "forward")),
    "kto": (SmallWithoutGradient(1, "forward"), Small(1, "backward")),
    "ppo": (Small(2, "backward"), SmallWithoutGradient(1, "forward")),
}
STEPS = {"sft": (8, 5)}  # rows of a step, so that micro-batches accumulate, and how many


def numbers(where, stage, place, folder):
    """A fault in step 2 of 3, and then one in every step, on the second rank."""
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


def memory(stage, folder):
    """Some steps, or in PPO two rollouts, with enough memory and with too little of it."""
    own = MEMORY[stage][RANK]
    batch, steps = STEPS.get(stage, (4, 3))
    settings = {"ppo_epochs": 1, "num_minibatches": 1, "micro_batch_size": None} if stage == "ppo" else {}
    length = {"epochs": 1, "limit_train_batches": 2} if stage == "ppo" else {"epochs": 99, "max_steps": steps}
    result = {}
    for name, callbacks in {"enough": [], "little": [own] if own else []}.items():
        seen, module, data = Gradients(), module_of(stage, **settings), data_of(stage, folder, 2, batch)
        accumulate = 1 if stage == "ppo" else data.accumulate_for(WORLD)
        trainer = phases.trainer(accumulate, callbacks=[*callbacks, seen], **length, **ddp())
        trainer.fit(module, datamodule=data)
        logged = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        result[name] = {"gradients": seen.seen, "weights": phases.flat(module.trained), "logged": logged}
        result[name]["inside"] = seen.inside
    return result | {"passed": getattr(own, "passed", []), "left": getattr(own, "places", {})}


def validation(folder):
    """Of rows that do not fit on the first rank."""
    own = [SmallWithoutGradient(1, "forward")] if RANK == 0 else []
    enough, _ = validated("sft", folder, folder / "enough", **ddp())
    little, module = validated("sft", folder, folder / "little", own, **ddp())
    return {"enough": enough, "little": little, "limit": module.splitting.val_limit}


def averages(folder):
    """Gradients as DDP averages them and as `Ranks` does; of four layers, one learns on the first rank alone, one on
    the second, one on none."""

    def layers():
        torch.manual_seed(0)
        return nn.ModuleList([*(nn.Linear(3, 3) for _ in range(3)), nn.Linear(3, 3, dtype=torch.float64)])

    class Some(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers()

        def forward(self, x):
            return self.layers[RANK](x).sum() + self.layers[3](x.double()).pow(2).sum()

    x, theirs, ours = torch.randn(2, 3, generator=torch.Generator().manual_seed(RANK)), Some(), Some()
    ddp = DistributedDataParallel(theirs, find_unused_parameters=True)
    ddp(x).backward()
    ours(x).backward()
    sizes = []

    class Counted(ranks.Ranks):
        def reduce(self, tensor):
            sizes.append(tensor.nbytes)
            return super().reduce(tensor)

    ranks.BUCKET = 60
    Counted(SimpleNamespace(world_size=WORLD, global_rank=RANK)).average_gradients(ours.parameters())
    grads = {name: [weight.grad for weight in some.parameters()] for name, some in (("ddp", theirs), ("ranks", ours))}
    return grads | {"sizes": sizes}


CASES = {f"{where.__name__}-{stage}-{place}": partial(numbers, where, stage, place) for where, stage, place in NUMBERS}
CASES |= {f"memory-{stage}": partial(memory, stage) for stage in MEMORY}
CASES |= {"validation": validation, "averages": averages}


def main(folder):
    warnings.filterwarnings("ignore", ".*out of memory.*")
    for name, run in CASES.items():
        try:
            result = run(folder)
        except Exception:
            result = {"failed": traceback.format_exc()}
        torch.save(result, folder / f"{name}.{RANK}.pt")


if __name__ == "__main__":
    assert WORLD == 2
    main(Path(sys.argv[1]))
