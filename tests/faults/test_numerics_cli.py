"""Broken numbers as the command ends with them: exit code 4, one sentence, the last good checkpoint (19 to 21)."""

import os
import subprocess
import sys

import pytest

from rlhf_lightning.checkpoint.io import checkpoints, newest_checkpoint
from tests.gates.gate_sources import ROOT
from tests.support import tiny
from tests.support.numeric_faults import write

FAULTS = [("sft", "loss", "nan", "loss"), ("ppo", "logits", "nan", "a logit in generation")]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("data"))
    (folder / "model").mkdir()
    tiny.policy(scale=0.3).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    return [
        "task=custom", "logger=none", "trainer=cpu", "threads=1", f"model.path={folder / 'model'}",
        f"data.demonstrations={folder / 'demonstrations.jsonl'}", f"data.comparisons={folder / 'rankings.jsonl'}",
        f"data.prompts={folder / 'prompts.jsonl'}", "+checkpoint.every_n_minutes=null", "+checkpoint.every_n_steps=1",
    ]  # fmt: skip


OWN = {
    "sft": ["sft.max_epochs=4", "sft.data.batch_size=2", "sft.data.validation_fraction=0.0"],
    "ppo": [
        "ppo.rollouts=6", "ppo.data.batch_size=4", "ppo.data.max_prompt_length=32", "ppo.sampling.max_new_tokens=6",
        "scorer=function", "scorer.function=tests.support.phases.praise",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("stage", "where", "value", "says"), FAULTS)
def test_case_19_to_21_the_command_ends_with_code_4(stage, where, value, says, words, tmp_path):
    fields = f"where: {where}, when: [3,4,5], value: '{value}'"
    fault = f"+callbacks.fault={{_target_: tests.support.numeric_faults.Break, {fields}}}"
    command = [sys.executable, "train.py", f"stage={stage}", *words, *OWN[stage], f"run_dir={tmp_path / 'run'}", fault]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "trusted_targets=[tests]"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 4, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"NumericalError: {stage}: step 5: {says}") and "3 in a row" in last
    assert "Traceback" not in done.stderr
    saved = tmp_path / "run" / "checkpoints" / stage
    assert newest_checkpoint(saved, pytest.fail) == checkpoints(saved)[0]
    assert not (tmp_path / "run" / stage).exists()  # nothing was exported
    dumps = sorted(path.name for path in (tmp_path / "run" / "bad_batches" / stage).iterdir())
    assert dumps == ["step-000003", "step-000004", "step-000005"] and dumps[-1] in last
