"""Three simulated people rank answers on the page: is what they make together as good as what the best makes alone?

    python -m benchmarks.people --seeds 4
    python -m benchmarks.people --seeds 4 --overlap 4      every fourth item to all three, each other one to one of them
    python -m benchmarks.people --seeds 4 --direct         written to the record, without the page

For each seed SFT samples candidates on the embedded task; people of accuracy 0.95, 0.8 and 0.6 (share of pairs that
they order as the hidden judge would) rank them; a reward model learns from what each said alone and one from the merged
rankings. All are measured on answers to held-out prompts that the judge ranked without noise. From the reward model of
the merged rankings the pipeline goes on to PPO. Exit status 1 if a reward model of one person is better than that of
all, or PPO does not end 0.6 above SFT by the judge.
"""

from __future__ import annotations

import argparse
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.conclusion import conclude
from benchmarks.people_play import Person, rank_by_hand, rank_on_the_page, scales_for
from benchmarks.runs import common, evaluation, train
from rlhf_lightning.checkpoint import read_provenance
from rlhf_lightning.labelling.ranking import write_rows
from rlhf_lightning.people import record
from rlhf_lightning.people.candidates import read_candidates
from rlhf_lightning.people.merging import merge

SKILLS = {"ann": 0.95, "ben": 0.8, "cat": 0.6}
CLOSE = 0.02  # of accuracy: what is not told apart on some 1500 held-out pairs


class Outcome(NamedTuple):
    """What one seed showed."""

    seed: int
    merged: float  # held-out accuracy of the reward model of all, as those of each
    ann: float
    ben: float
    cat: float
    found_ann: float  # accuracy of the person as merging found it without knowing the truth
    found_ben: float
    found_cat: float
    agree: float  # share of the pairs that one person orders on which another agrees
    sft: float  # the judge's score of held-out answers
    ppo: float

    def faults(self) -> list[str]:
        """What this seed did not reach."""
        checks = {
            f"merged at least the best alone, within {CLOSE}": self.merged >= max(self.ann, self.ben, self.cat) - CLOSE,
            "the judge gives PPO 0.6 more than SFT": self.ppo >= self.sft + 0.6,
        }
        return [name for name, holds in checks.items() if not holds]


def run_seed(seed: int, root: Path, overlap: int, direct: bool) -> Outcome:
    """Candidates, people, reward models, PPO."""
    first, truth = root / f"seed{seed}", root / f"seed{seed}-truth"
    shared, given = common(seed, root), [f"sft.output={first}/sft"]
    train(first, ["stages=[sft,rank]", "judge=none", *shared])
    held_out = f"rank.data.train={root}/assets{seed}/prompts.validation.jsonl"
    train(truth, ["stages=[rank]", "rank.noise=0", "rank.max_prompts=null", held_out, *given, *shared])
    items = read_candidates(first)
    labels = root / f"seed{seed}.db"
    if not labels.exists():
        scales = scales_for(items, SKILLS.values())
        people = [
            Person(name, scale, random.Random(f"{seed} {name}")) for name, scale in zip(SKILLS, scales, strict=True)
        ]
        (rank_by_hand if direct else rank_on_the_page)(labels, first, people, overlap)
    measured = [f"reward.data.validation={truth}/rankings/rankings.jsonl", *given, *shared]
    alone = {name: _alone(root / f"seed{seed}-{name}", labels, name, measured) for name in SKILLS}
    together = root / f"seed{seed}-merged"
    train(together, ["stages=[rank,reward,ppo,evaluate]", f"rank.human_ranks={labels}", *measured])
    told = (read_provenance(together / "rankings") or {})["people"]
    policies = {
        name: entry["summary"]["scores"]["gold"]["mean"] for name, entry in evaluation(together)["policies"].items()
    }
    return Outcome(
        seed, _accuracy(together), *alone.values(), *(told["annotators"][name]["accuracy"] for name in SKILLS),
        told["ceiling"]["mean"], policies["sft"], policies["ppo"],
    )  # fmt: skip


def _alone(folder: Path, labels: Path, name: str, measured: list[str]) -> float:
    """Held-out accuracy of a reward model of what one person said."""
    own = [one for one in record.judgements(labels) if one.annotator == name]
    rankings = labels.with_name(f"{labels.stem}-{name}.jsonl")
    write_rows(rankings, merge(record.items(labels), own, "majority").rows)
    train(folder, ["stages=[reward]", f"reward.data.train={rankings}", *measured])
    return _accuracy(folder)


def _accuracy(folder: Path) -> float:
    return float((read_provenance(folder / "reward") or {})["metrics"]["val/accuracy"])


def table(outcomes: list[Outcome]) -> str:
    """One row per seed under the names of the fields."""
    names = [name for name in Outcome._fields if name != "seed"]
    lines = ["seed  " + "  ".join(f"{name:>9}" for name in names)]
    lines += [f"{one.seed:>4}  " + "  ".join(f"{getattr(one, name):>9.3f}" for name in names) for one in outcomes]
    means = [sum(getattr(one, name) for one in outcomes) / len(outcomes) for name in names]
    return "\n".join([*lines, "mean  " + "  ".join(f"{mean:>9.3f}" for mean in means)])


def main() -> None:
    """Parse the command line, run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--overlap", type=int, default=1, help="every so manieth item is ranked by all")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at the same time, one thread each")
    parser.add_argument("--root", type=Path, default=Path("runs/people"), help="where the runs are written")
    parser.add_argument("--direct", action="store_true", help="write to the record, without the page")
    given = parser.parse_args()
    with ThreadPoolExecutor(given.jobs) as pool:
        seeds = range(given.first, given.first + given.seeds)
        outcomes = list(pool.map(lambda seed: run_seed(seed, given.root, given.overlap, given.direct), seeds))
    print(table(outcomes))
    conclude(outcomes)


if __name__ == "__main__":
    main()
