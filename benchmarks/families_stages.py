"""The four training stages as whole commands on a tiny model, in this process."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.families_tiny import VOCABULARY
from rlhf_lightning.config.compose import compose
from rlhf_lightning.stages.pipeline import run

COMMON = [
    "task=custom", "trainer=cpu", "logger=none", "threads=1", "seed=1", "model.activation_checkpointing=true",
]  # fmt: skip
STAGES = {
    "sft": ["stage=sft", "sft.max_epochs=1", "sft.data.batch_size=4", "sft.data.validation_fraction=0"],
    "dpo": ["stage=dpo", "dpo.max_epochs=1", "dpo.data.batch_size=4", "dpo.data.validation_fraction=0"],
    "reward": ["stage=reward", "reward.max_epochs=1", "reward.data.batch_size=4"],
    "ppo": [
        "stage=ppo", "scorer=function", "scorer.function=benchmarks.families_stages.height", "scorer.isolate=false",
        "ppo.rollouts=2",
        "ppo.data.batch_size=4", "ppo.critic=policy", "sampling.max_new_tokens=12", "ppo.settings.ppo_epochs=1",
        "trusted_targets=[benchmarks]",
    ],
}  # fmt: skip


def height(prompts: list[str], completions: list[str]) -> list[float]:
    """The higher the numbers of its words, the better."""
    return [sum(int(word[1:]) for word in text.split()) / 1000 for text in completions]


def write_rows(folder: Path) -> list[str]:
    """Write rows of words of the tiny tokenizer; returns the words of a command that name the files."""
    source = random.Random(3)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{source.randrange(3, VOCABULARY)}" for _ in range(source.randint(low, high)))

    rows = {
        "demonstrations": [{"prompt": words(4, 24), "completion": words(4, 16)} for _ in range(8)],
        "comparisons": [{"prompt": words(4, 24), "chosen": words(4, 16), "rejected": words(4, 16)} for _ in range(8)],
        "prompts": [{"prompt": words(4, 24)} for _ in range(8)],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return [f"data.{name}={folder / name}.jsonl" for name in rows]


def run_stage(stage: str, model: Path, scratch: Path) -> Path:
    """Train for a few steps; returns the folder of the export."""
    run_dir = scratch / f"run_{stage}"
    words = [*STAGES[stage], *COMMON, *write_rows(scratch), f"model.path={model}", f"run_dir={run_dir}"]
    run(compose(words))
    return run_dir / stage
