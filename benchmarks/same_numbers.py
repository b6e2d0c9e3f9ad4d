"""Do two checkouts compute the same numbers? ``python -m benchmarks.same_numbers OLD NEW``

Each runs the same short commands on the embedded task, with one thread and a fixed seed: the pipeline with PPO, PPO
with `algorithm=grpo`, DPO and KTO. Every number of every history must agree to `TOLERANCE`, apart from clocks; what
only one of them logs is named. Both trees are run by the interpreter that runs this script, from their own folder.
Takes about two minutes a checkout.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOLERANCE = 1e-6  # relative
ROLLOUTS = 10
SMALL = ["rank.max_prompts=200", f"ppo.rollouts={ROLLOUTS}", "evaluate.max_prompts=32", "logger=none"]
RANKINGS = "RUNS/pipeline/rankings/rankings.jsonl"
COMMANDS = {
    "pipeline": SMALL,
    "grpo": [
        "stages=[ppo]",
        "algorithm=grpo",
        "sft.output=RUNS/pipeline/sft",
        "reward.output=RUNS/pipeline/reward",
        *SMALL,
    ],
    "dpo": ["stage=dpo", "model.path=RUNS/pipeline/sft", f"data.comparisons={RANKINGS}", "logger=none"],
    "kto": ["stage=kto", "model.path=RUNS/pipeline/sft", f"data.comparisons={RANKINGS}", "logger=none"],
}
CLOCKS = ("seconds", "perf/")


def main() -> int:
    """Run, compare, and return how many numbers differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", choices=COMMANDS, nargs="*", default=list(COMMANDS))
    given = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            run_all(tree.resolve(), Path(folder) / str(i), given.only) for i, tree in enumerate((given.old, given.new))
        ]
        for command in given.only:
            for file in sorted((runs[0] / command / "history").glob("*.csv")):
                faults += compare(f"{command} {file.stem}", rows(file), rows(runs[1] / command / "history" / file.name))
    print("the numbers are the same" if not faults else f"{faults} numbers differ")
    return min(faults, 1)


def run_all(tree: Path, runs: Path, commands: list[str]) -> Path:
    """Run the commands in a checkout; returns the folder of the runs."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in commands:
        words = [word.replace("RUNS", str(runs)) for word in COMMANDS[name]]
        command = [
            sys.executable,
            str(tree / "train.py"),
            *words,
            f"run_dir={runs / name}",
            f"output_root={runs}",
            "threads=1",
        ]
        print(f"{tree.name}: {name}", flush=True)
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return runs


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a history."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def compare(name: str, old: list[dict[str, str]], new: list[dict[str, str]]) -> int:
    """Print where two histories differ; returns in how many numbers."""
    if not old or len(old) != len(new):
        print(f"{name}: {len(old)} rows before, {len(new)} now")
        return 1
    tags = [tag for tag in old[0] if not tag.startswith(CLOCKS)]
    for tag in sorted({*old[0]} ^ {*new[0]}):
        print(f"{name}: {tag} is in one of them only")
    faults, largest = 0, 0.0
    for number, (before, now) in enumerate(zip(old, new, strict=True)):
        for tag in (tag for tag in tags if tag in now):
            gap = distance(before[tag], now[tag])
            largest = max(largest, gap)
            if gap > TOLERANCE:
                faults += 1
                print(f"{name}, row {number}: {tag} {before[tag]} -> {now[tag]}")
    print(f"{name}: {len(old)} rows, {len(tags)} columns, largest relative difference {largest:.1e}")
    return faults


def distance(before: str, now: str) -> float:
    """Relative difference of two cells; words and empty cells agree or not."""
    try:
        a, b = float(before), float(now)
    except ValueError:
        return 0.0 if before == now else math.inf
    return abs(a - b) / max(abs(a), abs(b), 1e-12) if a != b else 0.0


if __name__ == "__main__":
    sys.exit(main())
