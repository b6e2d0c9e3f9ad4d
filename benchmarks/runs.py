"""Runs of the command in subprocesses, and the curves that they wrote."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.evaluation import read_history

WINDOW = 5  # rollouts in a mean, against the noise of 64 responses


def common(seed: int, root: Path) -> list[str]:
    """What all runs of a seed share: its number and the task that is made of it."""
    return [f"seed={seed}", f"task.seed={seed}", f"task.root={root}/assets{seed}"]


def hand_over(made: Path) -> list[str]:
    """What a run takes from the pipeline in ``made``: SFT policy, rankings and reward model."""
    return [f"sft.output={made}/sft", f"reward.output={made}/reward", f"rank.output={made}/rankings"]


def evaluation(run_dir: Path) -> dict[str, Any]:
    """What the evaluate stage of a run found."""
    found: dict[str, Any] = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))
    return found


def train(run_dir: Path, overrides: list[str]) -> float:
    """Run `train.py`, unless this folder is finished already; returns its CPU seconds."""
    clock = run_dir / "cpu_seconds"
    if clock.is_file():
        return float(clock.read_text(encoding="utf-8"))
    command = [sys.executable, "train.py", f"run_dir={run_dir}", *overrides]
    measure = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
    measure += "use = resource.getrusage(resource.RUSAGE_CHILDREN); print(use.ru_utime + use.ru_stime); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", measure, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    clock.write_text(done.stdout, encoding="utf-8")
    return float(done.stdout)


def columns(run_dir: Path) -> dict[str, list[float]]:
    """The PPO history by tag, one number per rollout."""
    rows: list[Any] = read_history(run_dir / "history" / "ppo.csv")
    tags = {tag for row in rows for tag in row}
    return {tag: [row[tag] for row in rows if isinstance(row.get(tag), (int, float))] for tag in tags}


def gold(run_dir: Path) -> float:
    """Mean of the hidden judge's score of PPO's answers to held-out prompts."""
    mean: float = evaluation(run_dir)["policies"]["ppo"]["summary"]["scores"]["gold"]["mean"]
    return mean


def compared(pairs: Sequence[tuple[float, float]], errors: float) -> bool:
    """Print the means of two ways to train, and whether the pairs differ by ``errors`` standard errors at most."""
    one, other = zip(*pairs, strict=True)
    gaps = [there - here for here, there in pairs]
    gap, error = statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
    print(f"means {statistics.mean(one):.3f} and {statistics.mean(other):.3f}, minima {min(one):.3f} and "
          f"{min(other):.3f}; mean difference of {len(gaps)} pairs {gap:+.3f}, standard error {error:.3f}")  # fmt: skip
    return abs(gap) <= errors * error


def smooth(track: list[float]) -> list[float]:
    """Means over `WINDOW` rollouts."""
    return [sum(track[i : i + WINDOW]) / WINDOW for i in range(len(track) - WINDOW + 1)]
