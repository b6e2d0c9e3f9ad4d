"""Every algorithm with its default config, from the SFT policy, rankings and reward model of one pipeline per seed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.conclusion import conclude
from benchmarks.runs import columns, common, evaluation, hand_over, smooth, train

ONLINE = (
    "ppo", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "reinforce_pp", "reinforce_pp_baseline", "remax"
)  # fmt: skip
OFFLINE = ("dpo", "kto", "best_of_n")
GAIN, OFFLINE_GAIN = 0.8, 0.4  # of held-out gold over SFT, asked for on every seed
WIN_RATE = 0.75
EXCURSION = 1.5  # times the KL target
BEHIND = 0.15  # gold of the best rollouts that the exported policy may lack


class Run(NamedTuple):
    """What one algorithm showed on one seed. Gold is the hidden judge's score on held-out prompts."""

    algorithm: str
    seed: int
    sft: float
    gold: float
    win_rate: float  # against SFT, ties half
    kl: float  # held-out, nats per response
    kl_max: float  # largest of all rollouts; 0 offline
    target: float  # 0 offline
    best: float  # highest mean of five rollouts by the judge; 0 offline
    exported: float  # that mean at the rollout that was exported

    def faults(self) -> list[str]:
        """What it did not reach."""
        online = self.algorithm in ONLINE
        least = GAIN if online else OFFLINE_GAIN
        checks = {f"gold at least SFT + {least}": self.gold >= self.sft + least}
        if online:
            checks |= {
                f"win rate at least {WIN_RATE:.0%}": self.win_rate >= WIN_RATE,
                f"no KL above {EXCURSION} times the target": self.kl_max <= EXCURSION * self.target,
                f"exported within {BEHIND} of the best rollouts": self.exported >= self.best - BEHIND,
            }
        return [f"{self.algorithm}: {name}" for name, holds in checks.items() if not holds]


def run_algorithm(algorithm: str, seed: int, root: Path, overrides: list[str]) -> Run:
    """Train from what ``root/seed<seed>`` made, evaluate, and read what was written."""
    made, folder = root / f"seed{seed}", root / f"seed{seed}-{algorithm}"
    stage = algorithm if algorithm in OFFLINE else "ppo"
    chosen = [] if algorithm in OFFLINE else [f"algorithm={algorithm}"]
    train(folder, [f"stages=[{stage},evaluate]", *chosen, *hand_over(made), *common(seed, root), *overrides])
    found = evaluation(folder)
    policies = {name: entry["summary"] for name, entry in found["policies"].items()}
    gold = {key: policy["scores"]["gold"]["mean"] for key, policy in policies.items()}
    win = found["win_rates"][f"{stage} vs sft"]["win_rate"]
    shown = (gold["sft"], gold[stage], win, policies[stage]["kl"]["mean"])
    if algorithm in OFFLINE:
        return Run(algorithm, seed, *shown, 0.0, 0.0, 0.0, 0.0)
    track = columns(folder)
    means = smooth(track["monitor/gold"])
    winner = json.loads((folder / "ppo" / "provenance.json").read_text(encoding="utf-8"))["metrics"]["best/rollout"]
    exported = means[max(int(winner) - 5, 0)]
    target = track["objective/kl_target"][-1] if "objective/kl_target" in track else 0.0
    return Run(algorithm, seed, *shown, max(track["objective/kl"]), target, max(means), exported)


def compare(algorithms: list[str], seeds: range, root: Path, jobs: int, overrides: list[str]) -> None:
    """Print a row per algorithm and seed, the minimum of each, and what was not reached; ends the program."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda seed: train(root / f"seed{seed}", [*common(seed, root), *overrides]), seeds))
        tasks = [(name, seed) for name in algorithms for seed in seeds]
        runs = list(pool.map(lambda task: run_algorithm(*task, root, overrides), tasks))
    print(f"{'algorithm':22}" + "".join(f"{name:>10}" for name in Run._fields[1:]))
    for run in runs:
        print(f"{run.algorithm:22}{run.seed:>10}" + "".join(f"{value:>10.3f}" for value in run[2:]))
    for name in algorithms:
        mine = [run for run in runs if run.algorithm == name]
        gain, wins = min(run.gold - run.sft for run in mine), min(run.win_rate for run in mine)
        print(f"{name:22} gold gain at least {gain:.2f}, win rate at least {wins:.0%}")
    conclude(runs)
