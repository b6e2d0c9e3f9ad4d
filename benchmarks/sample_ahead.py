"""Rollouts that are sampled while the policy learns: does it learn as much, and how long does a rollout take?

    python -m benchmarks.sample_ahead learning --seeds 5
    python -m benchmarks.sample_ahead clock

``learning``: for each seed the embedded pipeline runs; PPO and the evaluation then run again from the same SFT policy
and reward model with ``ppo.settings.sample_ahead=true``. Prints the gold score of both on held-out prompts; exit status
1 if the mean of the pairs' differences is more than ``--errors`` standard errors from zero.

``clock``: PPO of a tiny model with a stand-in for vLLM in a process of its own. Its answers take ``--seconds``, and the
scorer waits as long before learning begins: a stand-in for learning on a GPU, which leaves the processor free. Exit
status 1 if a rollout takes longer than ``--limit`` times the longer of sampling and all else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.runs import common, compared, gold, hand_over, train
from rlhf_lightning.rollout import ServerEngine
from rlhf_lightning.scoring import FunctionScorer
from tests.support import phases, tiny
from tests.support.fake_vllm import fake_vllm

AHEAD = {"sample_ahead": True, "correction": "token_truncate"}


def learning(seeds: int, errors: float, root: Path, overrides: list[str]) -> bool:
    """Gold after each rollout was sampled just before it is learned from, and after one was sampled ahead."""
    print(f"seed {'sync':>8} {'ahead':>8}")
    pairs = []
    for seed in range(seeds):
        made, ahead = root / f"seed{seed}", root / f"seed{seed}-ahead"
        shared = [*common(seed, root), *overrides]
        train(made, shared)
        given = [f"ppo.settings.{name}={str(value).lower()}" for name, value in AHEAD.items()]
        train(ahead, ["stages=[ppo,evaluate]", *hand_over(made), *shared, *given])
        pairs.append((gold(made), gold(ahead)))
        print(f"{seed:>4} {pairs[-1][0]:>8.3f} {pairs[-1][1]:>8.3f}", flush=True)
    return compared(pairs, errors)


class Laps(pl.Callback):
    """Seconds of each step, and of its parts."""

    def __init__(self) -> None:
        self.at = [time.perf_counter()]
        self.parts: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *given: Any) -> None:
        """Look at the clock."""
        self.at.append(time.perf_counter())
        self.parts.append({name: float(v) for name, v in trainer.callback_metrics.items() if "perf/seconds" in name})

    def middle(self) -> tuple[float, float, float]:
        """Medians of a step, of waiting for answers and of all else, without the first two steps and the last."""
        laps = [after - before for before, after in zip(self.at, self.at[1:], strict=False)][2:-1]
        waits = [part["perf/seconds_generate"] for part in self.parts[2:-1]]
        rest = [sum(part.values()) - part["perf/seconds_generate"] for part in self.parts[2:-1]]
        return statistics.median(laps), statistics.median(waits), statistics.median(rest)


def serve(delay: float, address: Any) -> None:
    """A server whose answers take ``delay`` seconds; ends when nobody listens."""
    torch.set_num_threads(1)
    with fake_vllm(tiny.policy(scale=0.3)) as server:
        server.delay = delay
        address.send(server.url)
        address.recv()


def laps(seconds: float, rollouts: int, settings: dict[str, Any]) -> tuple[float, float, float]:
    """What `Laps` saw of a run with a server and a scorer that take so many seconds."""

    def slow(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        time.sleep(seconds)
        return phases.praise(prompts, completions)

    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(seconds, there), daemon=True)
    process.start()
    with tempfile.TemporaryDirectory() as name:
        folder, watch = phases.write(Path(name)), Laps()
        module = phases.ppo_module(ppo_epochs=1, num_minibatches=1, micro_batch_size=8, **settings)
        module.scorer = FunctionScorer(slow)
        module.engine = ServerEngine([here.recv()], folder=folder, verify_every_n=10)
        phases.ppo(folder, module, rollouts=rollouts, batch=8, callbacks=[watch])
    here.send("done")
    process.join()
    return watch.middle()


def clock(limit: float, seconds: float, rollouts: int) -> bool:
    """Seconds of a rollout, sampled before and ahead."""
    torch.set_num_threads(1)
    step, generate, rest = laps(seconds, rollouts, {})
    ahead, waited, busy = laps(seconds, rollouts, AHEAD)
    share = ahead / max(generate, rest)
    print(f"sampling {generate:.2f} s, all else {rest:.2f} s (beside sampling {busy:.2f} s)\n"
          f"a rollout: sync {step:.2f} s, ahead {ahead:.2f} s, of which {waited:.2f} s wait for answers; "
          f"{share:.2f} times the longer of the two")  # fmt: skip
    return share <= limit


def main() -> None:
    """Parse the command line, run, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["learning", "clock"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--errors", type=float, default=1.0, help="standard errors that the mean may be from zero")
    parser.add_argument("--root", type=Path, default=Path("runs/sample_ahead"))
    parser.add_argument("--limit", type=float, default=1.1)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rollouts", type=int, default=6, help="of each run of the clock")
    options, overrides = parser.parse_known_args()
    if options.what == "clock":
        sys.exit(not clock(options.limit, options.seconds, options.rollouts))
    sys.exit(not learning(options.seeds, options.errors, options.root.absolute(), overrides))


if __name__ == "__main__":
    main()
