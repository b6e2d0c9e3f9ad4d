"""Does a real model on real text get better by a judge it never sees, with a reward model learned from rankings?

    python -m benchmarks.reviews --seeds 3

Runs ``experiment=reviews_smollm2`` once per seed (needs the extras ``gguf`` and ``reviews``) and prints, on held-out
prompts, how far gold and VADER moved from SFT to PPO, at which KL, and how likely the reference finds the answers.
Exit status 1 if gold rose by less than 0.5, KL exceeds 5 nats per response, or VADER fell.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.runs import train


class Outcome(NamedTuple):
    """What one seed showed on held-out prompts."""

    seed: int
    gold_sft: float
    gold_ppo: float
    vader_sft: float
    vader_ppo: float
    kl: float  # nats per response
    reference_nll: float  # nats per token, of PPO's answers under the SFT policy
    win_rate: float  # PPO against SFT, judged by gold, ties half
    minutes: float  # CPU time, of all threads together

    def reached(self) -> bool:
        """Whether this seed did what was asked for."""
        return self.gold_ppo - self.gold_sft >= 0.5 and self.kl <= 5 and self.vader_ppo >= self.vader_sft


def run_seed(seed: int, root: Path, overrides: list[str]) -> Outcome:
    """Run one seed in a subprocess and read its evaluation."""
    folder = root / f"reviews{seed}"
    seconds = train(folder, ["experiment=reviews_smollm2", f"seed={seed}", f"output_root={root}", *overrides])
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    sft, ppo = (evaluation["policies"][name]["summary"] for name in ("sft", "ppo"))
    scores = [policy["scores"][name]["mean"] for name in ("gold", "vader") for policy in (sft, ppo)]
    wins = evaluation["win_rates"]["ppo vs sft"]["win_rate"]
    return Outcome(seed, *scores, ppo["kl"]["mean"], ppo["nll_ref"]["mean"], wins, seconds / 60)


def main() -> None:
    """Parse the command line, run the seeds one after the other, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--root", type=Path, default=Path("runs/reviews"), help="where the runs are written")
    parser.add_argument("overrides", nargs="*", help="further overrides, for example ppo.rollouts=40")
    options = parser.parse_args()
    print("  ".join(f"{name:>13}" for name in Outcome._fields))
    outcomes = []
    for seed in range(options.first, options.first + options.seeds):
        outcomes.append(run_seed(seed, options.root, options.overrides))
        print("  ".join(f"{value:>13.3f}" for value in outcomes[-1]), flush=True)
    sys.exit(not all(outcome.reached() for outcome in outcomes))


if __name__ == "__main__":
    main()
