"""Does PPO learn as much from the answers of a server as from its own decode loop?

    python -m benchmarks.server_learning --seeds 3 --streams 3
    python -m benchmarks.server_learning --seeds 3 ppo.rollouts=40

For each seed the embedded pipeline makes an SFT policy and a reward model. PPO begins there ``--streams`` times with
``rollout=loop`` and as often with ``rollout=server`` and a stand-in for vLLM that computes with transformers, each time
with other random numbers for sampling. All these policies then answer the same held-out prompts ``--answers`` times, by
the loop and with the same random numbers, so that neither who samples for the evaluation nor its luck is compared.
Prints the gold score of each pair, how far streams of one engine are apart, and exit status 1 if the mean of the pairs'
differences is more than ``--errors`` standard errors from zero.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.runs import columns, common, compared, evaluation, hand_over, train
from tests.support.fake_vllm import fake_vllm

ENGINES = ("loop", "server")
EVALUATED = 31337  # a seed that no stream was trained with


def learn(engine: str, folder: Path, made: Path, overrides: list[str]) -> None:
    """PPO with an engine from what was made."""
    overrides = ["stages=[ppo]", *hand_over(made), *overrides, f"rollout={engine}"]
    if engine == "loop":
        train(folder, overrides)
        return
    policy = AutoModelForCausalLM.from_pretrained(made / "sft")
    with fake_vllm(policy, AutoTokenizer.from_pretrained(made / "sft")) as server:
        train(folder, [*overrides, f"rollout.urls=[{server.url}]"])


def run_seed(seed: int, streams: int, answers: int, root: Path, overrides: list[str]) -> list[tuple[float, float]]:
    """Gold with the loop and with the server, for each stream."""
    made, shared = root / f"seed{seed}", [*common(seed, root), *overrides]
    train(made, ["stages=[sft,rank,reward]", *shared])
    folders = {f"{engine}_{k}": root / f"seed{seed}-{engine}{k}" for k in range(streams) for engine in ENGINES}
    for name, folder in folders.items():
        engine, _, stream = name.partition("_")
        learn(engine, folder, made, [*shared, f"ppo.settings.seed={1000 * int(stream) + seed}"])
    policies = [f"+evaluate.policies.{name}={folder}/ppo" for name, folder in folders.items()]
    words = ["stage=evaluate", "evaluate.policies.base=null", "evaluate.baseline=loop_0", *common(seed, root)]
    found = root / f"seed{seed}-evaluated{streams}x{answers}"
    train(found, [*words, *policies, f"evaluate.samples_per_prompt={answers}", f"evaluate.seed={EVALUATED}"])
    summaries = evaluation(found)["policies"]
    gold = {name: summaries[name]["summary"]["scores"]["gold"]["mean"] for name in folders}
    pairs = [(gold[f"loop_{k}"], gold[f"server_{k}"]) for k in range(streams)]
    for k, pair in enumerate(pairs):
        gap = max(columns(folders[f"server_{k}"])["sampling/sampling_logp_difference/mean"])
        print(f"{seed:>4} {k:>6} {pair[0]:>8.3f} {pair[1]:>8.3f} {gap:>10.1e}", flush=True)
    return pairs


def spread(groups: Sequence[Sequence[float]]) -> float:
    """Standard deviation of streams of one seed, over all seeds."""
    return statistics.mean(statistics.variance(group) for group in groups) ** 0.5


def main() -> None:
    """Parse the command line, run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=3, help="of random numbers for sampling, for each seed")
    parser.add_argument("--answers", type=int, default=16, help="to each held-out prompt")
    parser.add_argument("--errors", type=float, default=1.0, help="standard errors that the mean may be from zero")
    parser.add_argument("--root", type=Path, default=Path("runs/server_learning"))
    options, overrides = parser.parse_known_args()
    print(f"seed stream {'loop':>8} {'server':>8} {'gap':>10}")
    root = options.root.absolute()
    seeds = [run_seed(seed, options.streams, options.answers, root, overrides) for seed in range(options.seeds)]
    for number, engine in enumerate(ENGINES if options.streams > 1 else ()):
        groups = [[pair[number] for pair in pairs] for pairs in seeds]
        print(f"streams of one seed, {engine}: standard deviation {spread(groups):.3f}")
    sys.exit(not compared([pair for pairs in seeds for pair in pairs], options.errors))


if __name__ == "__main__":
    main()
