"""What each nat of KL buys: gold against KL of PPO, RLOO, GRPO, DPO, KTO and best-of-n from one SFT policy.

    python -m benchmarks.frontier --seeds 5

All start from the same SFT policy, rankings and reward model per seed. An online run passes through every KL below its
target, so one run gives a curve: means over five rollouts. DPO and KTO are trained with several beta, best-of-n with
several n, and evaluated on held-out prompts. Prints gold at 1, 2, 4 and 6 nats per seed, between neighbouring points,
and draws a figure per seed; exit status 1 if PPO is below DPO or KTO on more than one seed.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.conclusion import conclude
from benchmarks.runs import columns, common, evaluation, hand_over, smooth, train

NATS = (1.0, 2.0, 4.0, 6.0)
ONLINE = ("ppo", "rloo", "grpo")
SETTINGS = {
    "dpo": ("dpo.loss.beta", (0.05, 0.1, 0.3, 1.0)),
    "kto": ("kto.loss.beta", (0.05, 0.1, 0.3)),
    "best_of_n": ("best_of_n.n", (2, 4, 8, 16)),
}
SLACK = 0.1  # gold within which two policies are equal: the standard error of 512 answers is 0.05


class Point(NamedTuple):
    """Gold of a policy at its distance from SFT."""

    kl: float  # nats per response
    gold: float


class Outcome(NamedTuple):
    """The curves of one seed, by algorithm."""

    seed: int
    curves: dict[str, list[Point]]

    def faults(self) -> list[str]:
        """Where PPO is below DPO or KTO at equal KL."""
        return [
            f"ppo {mine:.2f} below {other} {theirs:.2f} at {nats:g} nats"
            for nats in NATS
            for other in ("dpo", "kto")
            if (mine := at(self.curves["ppo"], nats)) is not None
            and (theirs := at(self.curves[other], nats)) is not None
            and mine < theirs - SLACK
        ]


def at(curve: list[Point], nats: float) -> float | None:
    """Gold at a KL between two neighbouring points of a curve; None outside of it.

    >>> at([Point(0.0, 0.0), Point(2.0, 1.0)], 1.0)
    0.5
    """
    points = sorted(curve)
    for left, right in pairwise(points):
        if left.kl <= nats <= right.kl and right.kl > left.kl:
            return left.gold + (right.gold - left.gold) * (nats - left.kl) / (right.kl - left.kl)
    return None


def run_seed(seed: int, root: Path, overrides: list[str]) -> Outcome:
    """Train and evaluate everything of one seed."""
    made = root / f"seed{seed}"
    shared = [*common(seed, root), *overrides]
    train(made, shared)
    given = [*hand_over(made), *shared]
    curves = {}
    for name in ONLINE:
        folder = root / f"seed{seed}-frontier-{name}"
        train(folder, [f"algorithm={name}", "stages=[ppo]", "kl.target=7", *given])
        track = columns(folder)
        means = zip(smooth(track["objective/kl"]), smooth(track["monitor/gold"]), strict=True)
        curves[name] = [Point(*pair) for pair in means]
    for name, (key, values) in SETTINGS.items():
        curves[name] = [_offline(name, f"{key}={value}", made, root, given) for value in values]
        sft = evaluation(made)["policies"]["sft"]["summary"]
        curves[name].append(Point(0.0, sft["scores"]["gold"]["mean"]))
    return Outcome(seed, curves)


def _offline(name: str, setting: str, made: Path, root: Path, overrides: list[str]) -> Point:
    folder = root / f"{made.name}-frontier-{setting.replace('=', '-')}"
    train(folder, [f"stages=[{name},evaluate]", setting, *overrides])
    summary = evaluation(folder)["policies"][name]["summary"]
    return Point(summary["kl"]["mean"], summary["scores"]["gold"]["mean"])


def draw(outcome: Outcome, file: Path) -> None:
    """One line per algorithm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in outcome.curves.items():
        axes.plot(*zip(*sorted(curve), strict=True), marker="." if name in ONLINE else "o", label=name)
    axes.set(xlabel="KL from SFT, nats per response", ylabel="gold", title=f"seed {outcome.seed}")
    axes.legend()
    figure.savefig(file)


def main() -> None:
    """Parse the command line, run, print, draw, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at the same time, one thread each")
    parser.add_argument("--root", type=Path, default=Path("runs/frontier"), help="where the runs are written")
    parser.add_argument("overrides", nargs="*", help="further overrides")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        run = lambda seed: run_seed(seed, options.root, options.overrides)  # noqa: E731
        outcomes = list(pool.map(run, range(options.seeds)))
    print(f"seed  {'algorithm':12}" + "".join(f"{nats:>8g}" for nats in NATS) + "   highest KL")
    for outcome in outcomes:
        for name, curve in outcome.curves.items():
            found = [at(curve, nats) for nats in NATS]
            shown = "".join("       -" if gold is None else f"{gold:>8.2f}" for gold in found)
            print(f"{outcome.seed:>4}  {name:12}{shown}{max(curve).kl:>13.1f}")
        draw(outcome, options.root / f"frontier-seed{outcome.seed}.png")
    below = [outcome for outcome in outcomes if outcome.faults()]
    if len(below) > 1:
        conclude(below)
    print(f"ppo is not below dpo and kto on {len(outcomes) - len(below)} of {len(outcomes)} seeds")


if __name__ == "__main__":
    main()
