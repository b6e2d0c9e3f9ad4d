"""Does TRL learn the same from the same SFT policy, prompts and reward model? GRPO and RLOO with matched settings.

    python -m benchmarks.against_trl_learning --made runs/learning --peer-python VENV/bin/python

``--made`` holds finished pipelines of the seeds, as ``python -m benchmarks.learning`` leaves them. Both sides take 60
rollouts of 64 answers with a fixed KL coefficient, placed where TRL places it: in the reward of RLOO, in the loss of
GRPO. Every fifth policy of both is judged on the same held-out prompts by one call of the evaluate stage. Prints curves
and held-out gold at equal KL, and draws a figure; exit status 1 where the sides differ by more than a standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl

from benchmarks.frontier import Point, at
from benchmarks.runs import WINDOW, columns, common, evaluation, hand_over, smooth, train
from rlhf_lightning.tasks.miniature.gold import gold

ROLLOUTS, EVERY = 60, 5
NATS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
SIDES = ("ours", "trl")


class Match(NamedTuple):
    """One algorithm in the words of both sides."""

    overrides: tuple[str, ...]
    arguments: dict[str, Any]
    updates: int  # optimizer steps per rollout


OURS = (
    "stages=[ppo]", "kl=fixed", "ppo.settings.max_approx_kl=null", "ppo.settings.missing_eos_penalty=0",
    "ppo.optimizer.lr=3e-4", "ppo.scheduler.final=1", f"ppo.rollouts={ROLLOUTS}", "trusted_targets=[benchmarks]",
)  # fmt: skip
TRLS = {
    "learning_rate": 3e-4, "adam_epsilon": 1e-5, "lr_scheduler_type": "constant", "logging_steps": ROLLOUTS,
    "max_completion_length": 24, "temperature": 1.0, "shuffle_dataset": True,
}  # fmt: skip
MATCHES = {
    "rloo": Match(
        (
            "algorithm=rloo", "kl.coef=0.1", "ppo.settings.aggregation=seq_mean_token_sum", "ppo.settings.group_size=4",
            "ppo.settings.ppo_epochs=1", "ppo.settings.num_minibatches=1",
        ),
        {"num_generations": 4, "beta": 0.1, "per_device_train_batch_size": 64, "max_steps": ROLLOUTS},
        1,
    ),
    "grpo": Match(
        (
            "algorithm=grpo", "kl.coef=0.5", "ppo.settings.kl_placement=loss", "ppo.settings.kl_estimator=k3",
            "ppo.settings.group_size=8", "ppo.settings.ppo_epochs=2", "ppo.settings.num_minibatches=2",
        ),
        {
            "num_generations": 8, "beta": 0.5, "per_device_train_batch_size": 32, "steps_per_generation": 2,
            "num_iterations": 2, "max_steps": 4 * ROLLOUTS, "loss_type": "grpo", "use_bias_correction_kl": False,
        },
        4,
    ),
}  # fmt: skip


class Snapshots(pl.Callback):
    """The policy after some rollouts, in folders called by their number.

    Args:
        folder: where they go.
        every: rollouts from one to the next.
    """

    def __init__(self, folder: str, every: int = EVERY) -> None:
        self.folder, self.every = folder, every

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.rollouts % self.every == 0:
            for part in (pl_module.policy, pl_module.tokenizer):
                part.save_pretrained(f"{self.folder}/{pl_module.rollouts}")


class Curves(NamedTuple):
    """One side of one seed."""

    gold: list[float]  # of each rollout, as the next two
    proxy: list[float]
    kl: list[float]  # nats per response
    heldout: list[Point]  # of each snapshot, and of the SFT policy


class Outcome(NamedTuple):
    """Both sides of one algorithm on one seed."""

    algorithm: str
    seed: int
    ours: Curves
    trl: Curves

    def difference(self) -> float:
        """Held-out gold of ours minus TRL's at equal KL: mean over the levels that both reach."""
        pairs = [(at(self.ours.heldout, nats), at(self.trl.heldout, nats)) for nats in NATS]
        return statistics.mean(mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None)


def run_ours(folder: Path, algorithm: str, given: list[str]) -> Curves:
    """Train our side, unless it is finished."""
    words = [*OURS, *MATCHES[algorithm].overrides]
    words += ["+callbacks.snapshots._target_=benchmarks.against_trl_learning.Snapshots"]
    words += [f"+callbacks.snapshots.folder={folder}/policies"]
    train(folder, [*words, *given])
    track = columns(folder)
    return Curves(track["monitor/gold"], track["objective/scores"], track["objective/kl"], [])


def run_trl(folder: Path, algorithm: str, seed: int, made: Path, python: str) -> Curves:
    """Train TRL's side in a process of its interpreter, unless it is finished, and judge its rollouts."""
    policies, done = folder / "policies", folder / "done"
    if not done.is_file():
        policies.mkdir(parents=True, exist_ok=True)
        (policies / "track.jsonl").unlink(missing_ok=True)
        match = MATCHES[algorithm]
        batch = match.arguments["per_device_train_batch_size"]
        job = {
            "learner": algorithm, "seed": seed, "threads": 1, "device": "cpu", "dtype": "float32",
            "folder": str(policies.resolve()), "model": str((made / f"seed{seed}" / "sft").resolve()),
            "reward_model": str((made / f"seed{seed}" / "reward").resolve()),
            "rows": str((made / f"assets{seed}" / "prompts.jsonl").resolve()),
            "micro": batch, "batch": batch, "warm_up": 0, "steps": 1, "arguments": TRLS | match.arguments,
            "updates": match.updates, "snapshots": list(range(EVERY, ROLLOUTS + 1, EVERY)),
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [python, "-m", "benchmarks.peer_trl_learning", str(folder / "job.json")]
        subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        done.touch()
    rows = [json.loads(line) for line in (policies / "track.jsonl").read_text(encoding="utf-8").splitlines()]
    golds = [statistics.mean(gold(row["prompts"], row["completions"])) for row in rows]
    scores, ratios = ([statistics.mean(row[name]) for row in rows] for name in ("scores", "log_ratios"))
    return Curves(golds, scores, ratios, [])


def judge(folder: Path, sides: dict[str, Path], seed: int, made: Path) -> dict[str, list[Point]]:
    """Held-out gold and KL of all snapshots of both sides, in one evaluation beside the SFT policy."""
    numbers = range(EVERY, ROLLOUTS + 1, EVERY)
    policies = {"sft": f"{made}/seed{seed}/sft"}
    policies |= {f"{side}{number}": f"{path}/policies/{number}" for side, path in sides.items() for number in numbers}
    words = [f"+evaluate.policies.{name}={path}" for name, path in policies.items()]
    train(folder, ["stage=evaluate", "evaluate.baseline=sft", *words, *common(seed, made)])
    found = {name: entry["summary"] for name, entry in evaluation(folder)["policies"].items()}
    points = {
        name: Point((entry["kl"] or {"mean": 0.0})["mean"], entry["scores"]["gold"]["mean"])
        for name, entry in found.items()
    }
    return {side: [points["sft"], *(points[f"{side}{number}"] for number in numbers)] for side in sides}


def run_seed(algorithm: str, seed: int, options: argparse.Namespace) -> Outcome:
    """Train and judge both sides."""
    given = [*common(seed, options.made), *hand_over(options.made / f"seed{seed}"), *options.overrides]
    folders = {side: options.root / f"seed{seed}-{algorithm}-{side}" for side in SIDES}
    ours = run_ours(folders["ours"], algorithm, given)
    trl = run_trl(folders["trl"], algorithm, seed, options.made, options.peer_python)
    points = judge(options.root / f"seed{seed}-{algorithm}-judged", folders, seed, options.made)
    return Outcome(algorithm, seed, ours._replace(heldout=points["ours"]), trl._replace(heldout=points["trl"]))


def table(outcomes: list[Outcome]) -> str:
    """Curves as means over five rollouts, and held-out gold at equal KL."""
    last = list(range(0, ROLLOUTS - WINDOW + 1, 11))
    lines = [f"{'':28}rollouts " + "".join(f"{f'{i + 1}-{i + WINDOW}':>8}" for i in last)]
    for outcome in outcomes:
        for side in SIDES:
            curves: Curves = getattr(outcome, side)
            for name in ("gold", "proxy", "kl"):
                means = smooth(getattr(curves, name))
                what = f"seed {outcome.seed} {outcome.algorithm} {side:5} {name}"
                lines.append(f"{what:37}" + "".join(f"{means[i]:>8.2f}" for i in last))
    lines += ["", f"{'held-out gold at':21}" + "".join(f"{f'{nats:g} nats':>10}" for nats in NATS)]
    for outcome in outcomes:
        for side in SIDES:
            found = [at(getattr(outcome, side).heldout, nats) for nats in NATS]
            shown = "".join("         -" if value is None else f"{value:>10.2f}" for value in found)
            lines.append(f"{f'seed {outcome.seed} {outcome.algorithm} {side}':21}{shown}")
    return "\n".join(lines)


def draw(outcomes: list[Outcome], file: Path) -> None:
    """Rows of figures: the tracks of a seed, and held-out gold against KL."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3 * len(outcomes)), layout="constrained")
    for row, outcome in zip(figure.subplots(len(outcomes), 4, squeeze=False), outcomes, strict=True):
        for side, colour in zip(SIDES, ("C0", "C1"), strict=True):
            curves: Curves = getattr(outcome, side)
            for axes, name in zip(row, ("gold", "proxy", "kl"), strict=False):
                axes.plot(smooth(getattr(curves, name)), colour, label=side)
                axes.set(xlabel="rollout", ylabel=name, title=f"{outcome.algorithm}, seed {outcome.seed}")
            row[3].plot(*zip(*curves.heldout, strict=True), f"{colour}o-", label=side)
            row[3].set(xlabel="KL from SFT, nats per response", ylabel="gold, held-out")
        row[0].legend()
    figure.savefig(file)


def main() -> None:
    """Parse the command line, run, print, draw, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--algorithms", default=",".join(MATCHES), help="names with commas")
    parser.add_argument("--made", type=Path, default=Path("runs/learning"), help="finished pipelines of the seeds")
    parser.add_argument("--root", type=Path, default=Path("runs/against_trl"), help="where the runs are written")
    parser.add_argument("--peer-python", required=True, help="an interpreter with TRL 1.16")
    parser.add_argument("overrides", nargs="*", help="further overrides of our side")
    options = parser.parse_args()
    algorithms = options.algorithms.split(",")
    outcomes = [run_seed(name, seed, options) for name in algorithms for seed in range(options.seeds)]
    print(table(outcomes))
    draw(outcomes, options.root / "against_trl.png")
    apart = []
    for name in algorithms:
        found = [outcome.difference() for outcome in outcomes if outcome.algorithm == name]
        mean, error = statistics.mean(found), statistics.stdev(found) / len(found) ** 0.5
        shown = ", ".join(f"{value:+.3f}" for value in found)
        print(f"{name}: held-out gold at equal KL, ours minus TRL's: {mean:+.3f} +- {error:.3f} (per seed {shown})")
        apart += [name] * (abs(mean) > error)
    sys.exit(", ".join(apart) + ": apart by more than a standard error" if apart else 0)


if __name__ == "__main__":
    main()
