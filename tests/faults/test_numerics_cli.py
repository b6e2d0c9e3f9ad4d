"""Broken numbers as the command ends with them: exit code 4, one sentence, the last good checkpoint (19 to 21)."""

import os
import subprocess
import sys

import pytest

from rlhf_lightning.checkpoint.io import checkpoints, newest_checkpoint
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import NumericalError
from rlhf_lightning.stages.pipeline import run
from tests.gates.gate_sources import ROOT
from tests.support import tiny
from tests.support.numeric_faults import write

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("default:.*skipped, . of 3 in a row"),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("data"))
    (folder / "model").mkdir()
    tiny.policy(scale=0.3).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    return [
        "task=custom", "logger=none", "trainer=cpu", "threads=1", f"model.path={folder / 'model'}",
        f"data.demonstrations={folder / 'demonstrations.jsonl'}", f"data.comparisons={folder / 'rankings.jsonl'}",
        f"data.prompts={folder / 'prompts.jsonl'}", "checkpoint.every_n_minutes=null", "checkpoint.every_n_steps=1",
    ]  # fmt: skip


OWN = {
    "sft": ["sft.max_epochs=4", "sft.data.batch_size=2", "sft.data.validation_fraction=0.0"],
    "ppo": [
        "ppo.rollouts=6", "ppo.data.batch_size=4", "ppo.data.max_prompt_length=32", "ppo.sampling.max_new_tokens=6",
        "scorer=function", "scorer.function=tests.support.phases.praise",
    ],
}  # fmt: skip


def as_command(words):
    """What the command says last."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "train.py", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1].removeprefix("NumericalError: ")


def in_this_process(words):
    """The same without a process."""
    with pytest.warns(UserWarning, match="skipped, 2 of 3 in a row"), pytest.raises(NumericalError) as error:
        run(compose(words))
    assert error.value.exit_code == 4
    return str(error.value)


@pytest.mark.parametrize(
    ("stage", "where", "says", "start"),
    [("sft", "loss", "loss", as_command), ("ppo", "logits", "a logit in generation", in_this_process)],
)
def test_case_19_to_21_the_command_ends_with_code_4(stage, where, says, start, words, tmp_path):
    node = f"{{_target_: tests.support.numeric_faults.Break, where: {where}, when: [3,4,5], value: 'nan'}}"
    given = [f"run_dir={tmp_path / 'run'}", f"+callbacks.fault={node}", "trusted_targets=[tests]"]
    last = start([f"stage={stage}", *words, *OWN[stage], *given])
    assert last.startswith(f"{stage}: step 5: {says}") and "3 in a row" in last
    saved = tmp_path / "run" / "checkpoints" / stage
    assert newest_checkpoint(saved, pytest.fail) == checkpoints(saved)[0]
    assert not (tmp_path / "run" / stage).exists()  # nothing was exported
    dumps = sorted(path.name for path in (tmp_path / "run" / "bad_batches" / stage).iterdir())
    assert dumps == ["step-000003", "step-000004", "step-000005"] and dumps[-1] in last
