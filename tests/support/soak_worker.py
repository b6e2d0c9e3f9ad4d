"""The soak of `benchmarks.soak` on a pipeline of seconds: ``python -m tests.support.soak_worker FOLDER KILLS JSON``.

Each attempt is the command, in a process that is forked from this one and ended with SIGKILL.
"""

import json
import sys
from pathlib import Path

import tests.conftest  # noqa: F401  (threads and no network)
from benchmarks.soak import STAGES, Soak
from rlhf_lightning.console.streams import quiet
from tests.support import small_pipeline

WORDS = [
    "resume=auto", "judge=function", "judge.isolate=false",
    "judge.function=tests.support.trees.letters", "rank.data.max_prompt_length=32", "rank.sampling.max_new_tokens=4",
    "trusted_targets=[tests]",
]  # fmt: skip


class SmallSoak(Soak):
    """Kills runs of the small pipeline."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self.words = [word for word in small_pipeline.prepare(folder) if not word.startswith(("stages=", "data.comp"))]

    def command(self, run, stages=STAGES):
        return [*self.words, *WORDS, f"stages=[{','.join(stages)}]", f"run_dir={run}"]


def main(folder: Path, kills: int, out: Path) -> None:
    quiet()
    soak = SmallSoak(folder, seed=0)
    expected = soak.uninterrupted()
    assert {name.partition("/")[0] for name in expected} == {"sft", "rankings", "reward", "ppo", "history"}
    while (left := kills - soak.counts["kills"]) > 0:
        soak.kill_one_run(folder / f"run-{soak.counts['runs']:03d}", left, expected)
    out.write_text(json.dumps({**soak.counts, "faults": soak.faults}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
