"""A critic of its own, or a head on the trunk of the policy: which learns more in the same CPU time?

    python -m benchmarks.critics --task miniature --seeds 4
    python -m benchmarks.critics --task smollm2 --seeds 4

For each seed the layouts start from the same policy and run the same number of rollouts, one after the other. A layout
is judged at the CPU time at which the fastest of its seed was done: the reward reached by then (score minus KL penalty)
and the score of a judge nobody learns from. ``miniature`` learns from a reward model, as the pipeline does; ``smollm2``
from the judge itself, which then is the proxy.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import lightning.pytorch as pl

from benchmarks.runs import train

LAYOUTS = {
    "reward model": ["ppo.critic={reward}", "ppo.settings.value_coef=1.0"],
    "copy of the policy": ["ppo.critic=policy", "ppo.settings.value_coef=1.0"],
    "shared trunk": ["ppo.critic=shared_trunk", "ppo.settings.value_coef=1.0"],
    "shared trunk, value_coef 0.1": ["ppo.critic=shared_trunk", "ppo.settings.value_coef=0.1"],
}
TASKS = {
    "miniature": (["algorithm=ppo"], tuple(LAYOUTS)),
    "smollm2": (
        ["experiment=reviews_smollm2", "algorithm=ppo", "stage=ppo", "ppo.rollouts=16", "ppo.data.batch_size=32"],
        ("copy of the policy", "shared trunk"),
    ),
}
WINDOW = 5  # rollouts in a mean
TAGS = {"reward": "objective/rlhf_reward", "proxy": "objective/scores", "gold": "monitor/gold", "kl": "objective/kl"}


class CpuClock(pl.Callback):
    """Writes what was logged at the end of each rollout, and the CPU seconds since the first one began."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.process_time()
        self.path.write_text(",".join(["seconds", *TAGS]) + "\n", encoding="utf-8")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        logged = trainer.logged_metrics | trainer.callback_metrics
        values = [float(logged.get(tag, "nan")) for tag in TAGS.values()]
        with self.path.open("a", encoding="utf-8") as file:
            csv.writer(file).writerow([time.process_time() - self._began, *values])


class Outcome(NamedTuple):
    """What one layout showed on one seed; means over the last rollouts."""

    seed: int
    layout: str
    seconds: float  # of a rollout
    rollouts: int  # within the time of the fastest layout of its seed
    reward: float  # this and the next three until then
    proxy: float
    gold: float
    kl: float
    final: float  # reward after all rollouts


def read(path: Path) -> list[dict[str, float]]:
    """The rows that a `CpuClock` wrote."""
    with path.open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def compare(seed: int, tracks: dict[str, list[dict[str, float]]]) -> list[Outcome]:
    """Each layout at the CPU time at which the fastest one was done."""
    budget = min(rows[-1]["seconds"] for rows in tracks.values())
    outcomes = []
    for layout, rows in tracks.items():
        done = [row for row in rows if row["seconds"] <= budget]
        last = {name: mean(row[name] for row in done[-WINDOW:]) for name in TAGS}
        final = mean(row["reward"] for row in rows[-WINDOW:])
        outcomes.append(Outcome(seed, layout, rows[-1]["seconds"] / len(rows), len(done), **last, final=final))
    return outcomes


def run_seed(task: str, seed: int, root: Path, overrides: Sequence[str]) -> list[Outcome]:
    """All layouts of one seed."""
    words, layouts = TASKS[task]
    common = [f"seed={seed}", "threads=1", f"output_root={root}", *words, *overrides]
    before = root / f"{task}{seed}"
    if task == "miniature":
        common += [f"task.seed={seed}", f"task.root={root}/assets{seed}"]
        train(before, ["stages=[sft,rank,reward]", *common])
        common += ["stages=[ppo]", f"sft.output={before}/sft", f"reward.output={before}/reward"]
    tracks = {}
    for number, layout in enumerate(layouts):
        folder = root / f"{task}{seed}-{number}"
        track = root / f"{task}{seed}-{number}.csv"
        meter = ["+callbacks.cpu._target_=benchmarks.critics.CpuClock", f"+callbacks.cpu.path={track}"]
        chosen = [word.format(reward=f"{before}/reward") for word in LAYOUTS[layout]]
        train(folder, [*common, *chosen, *meter, "trusted_targets=[benchmarks]"])
        tracks[layout] = read(track)
    return compare(seed, tracks)


def table(outcomes: list[Outcome]) -> str:
    """One row per seed and layout."""
    names = [name for name in Outcome._fields if name not in ("seed", "layout")]
    lines = [f"{'seed':>4}  {'critic':<30}" + "".join(f"{name:>10}" for name in names)]
    lines += [
        f"{o.seed:>4}  {o.layout:<30}" + "".join(f"{getattr(o, name):>10.3f}" for name in names) for o in outcomes
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="miniature")
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--root", type=Path, default=Path("runs/critics"), help="where the runs are written")
    parser.add_argument("overrides", nargs="*", help="further overrides, for example ppo.rollouts=40")
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for seed in range(options.first, options.first + options.seeds):
        outcomes += run_seed(options.task, seed, options.root, options.overrides)
        print(table(outcomes), flush=True)
    for layout in dict.fromkeys(outcome.layout for outcome in outcomes):
        of_it = [outcome for outcome in outcomes if outcome.layout == layout]
        rewards = [outcome.reward for outcome in of_it]
        print(f"{layout:<36}reward: mean {mean(rewards):.3f}, lowest {min(rewards):.3f}")


if __name__ == "__main__":
    main()
