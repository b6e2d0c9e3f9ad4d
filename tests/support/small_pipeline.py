"""A pipeline of three stages on a model of a few thousand weights, whole or stopped again and again."""

from pathlib import Path

import lightning

from rlhf_lightning.checkpoint.provenance import sha256
from rlhf_lightning.config.compose import compose
from rlhf_lightning.stages.pipeline import run
from tests.support import phases, tiny

STAGES = ("sft", "reward", "ppo")


class Stop(lightning.Callback):
    """Ends the process, as far as the run can tell, in the step after so many."""

    def __init__(self, after):
        self.left = after

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.left -= 1
        if self.left < 0:
            raise SystemError("stopped")


def inputs(folder: Path) -> list[str]:
    """Write data and model; returns the words that lead a pipeline to them, without its stages."""
    phases.write(folder)
    tiny.policy(scale=0.3).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    return [
        "stage=pipeline", "task=custom", "logger=none", "trainer=cpu", "threads=1", f"model.path={folder / 'model'}",
        f"data.demonstrations={folder / 'demonstrations.jsonl'}", f"data.prompts={folder / 'prompts.jsonl'}",
        f"reward.data.train={folder / 'rankings.jsonl'}", "sft.max_epochs=2", "ppo.data.batch_size=4",
        "ppo.settings.ppo_epochs=2", "ppo.settings.num_minibatches=1",
        "sampling.max_new_tokens=6", "ppo.data.max_prompt_length=32",
    ]  # fmt: skip


def prepare(folder: Path) -> list[str]:
    """Write data and model; returns the words of the command."""
    return [
        *inputs(folder), "stages=[sft,reward,ppo]", f"data.comparisons={folder / 'rankings.jsonl'}",
        "sft.data.batch_size=2", "reward.data.batch_size=2", "ppo.rollouts=3",
        "checkpoint.every_n_minutes=null", "checkpoint.every_n_steps=1",
    ]  # fmt: skip


def go(words: list[str], run_dir: Path, after: int | None = None) -> dict[str, float]:
    """Run, and with ``after`` be stopped by a SystemError once so many batches are trained."""
    node = f"{{_target_: tests.support.small_pipeline.Stop, after: {after}}}"
    stop = [] if after is None else [f"+callbacks.stop={node}", "trusted_targets=[tests]"]
    return run(compose([*words, f"run_dir={run_dir}", *stop]))


def go_in_pieces(words: list[str], run_dir: Path, after: int = 2) -> tuple[dict[str, float], int]:
    """Run, be stopped and go on until the end; the metrics, and how often it was stopped."""
    stops = 0
    while True:
        try:
            return go([*words, "resume=auto"], run_dir, after), stops
        except SystemError:
            stops += 1


def exported(run_dir: Path) -> dict[str, str]:
    """Checksums of all the weights that the stages handed over."""
    files = [file for stage in STAGES for file in sorted((run_dir / stage).rglob("*.safetensors"))]
    assert {file.relative_to(run_dir).parts[0] for file in files} == set(STAGES)
    return {str(file.relative_to(run_dir)): sha256(file) for file in files}


def assert_same_metrics(metrics: dict[str, float], others: dict[str, float]) -> None:
    """All but those that depend on the clock."""
    same = {name: value for name, value in metrics.items() if not name.startswith("perf/")}
    assert {name: value for name, value in others.items() if name in same} == same
