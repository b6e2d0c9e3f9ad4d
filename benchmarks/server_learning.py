"""Does PPO learn as much from the answers of a server as from its own decode loop?

    python -m benchmarks.server_learning --seeds 3
    python -m benchmarks.server_learning --seeds 3 ppo.rollouts=40

For each seed the embedded pipeline runs with ``rollout=loop``; PPO and the evaluation then run again from the same SFT
policy and reward model with ``rollout=server`` and a stand-in for vLLM that computes with transformers. Prints the gold
score of both on held-out prompts; exit status 1 if their means are further apart than ``--errors`` standard errors of
the difference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.runs import columns, common, compared, gold, hand_over, train
from tests.support.fake_vllm import fake_vllm


def run_seed(seed: int, root: Path, overrides: list[str]) -> tuple[float, float]:
    """Gold with the loop and with the server."""
    made, served = root / f"seed{seed}", root / f"seed{seed}-server"
    shared = [*common(seed, root), *overrides]
    train(made, shared)
    policy = AutoModelForCausalLM.from_pretrained(made / "sft")
    with fake_vllm(policy, AutoTokenizer.from_pretrained(made / "sft")) as server:
        given = ["rollout=server", f"rollout.urls=[{server.url}]"]
        train(served, ["stages=[ppo,evaluate]", *hand_over(made), *shared, *given])
    gap = max(columns(served)["sampling/sampling_logp_difference/mean"])
    print(f"{seed:>4} {gold(made):>8.3f} {gold(served):>8.3f} {gap:>10.1e}", flush=True)
    return gold(made), gold(served)


def main() -> None:
    """Parse the command line, run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--errors", type=float, default=1.0, help="standard errors that the means may be apart")
    parser.add_argument("--root", type=Path, default=Path("runs/server_learning"))
    options, overrides = parser.parse_known_args()
    print(f"seed {'loop':>8} {'server':>8} {'gap':>10}")
    pairs = [run_seed(seed, options.root.absolute(), overrides) for seed in range(options.seeds)]
    sys.exit(not compared(pairs, options.errors))


if __name__ == "__main__":
    main()
