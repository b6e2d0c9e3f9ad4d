"""Adapters from the command line: the stages hand plain models on, and a stopped run ends where a whole one ends."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from rlhf_lightning.checkpoint.handover import sha256
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.config import compose
from rlhf_lightning.pipeline import run as run_pipeline
from tests import tiny
from tests.integration import phases

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
STAGES = ("sft", "reward", "ppo")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = phases.write(tmp_path_factory.mktemp("data"))
    tiny.policy(scale=0.3).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    return [
        "stage=pipeline", "stages=[sft,reward,ppo]", "task=custom", "logger=none", "trainer=cpu", "threads=1",
        f"model.path={folder / 'model'}", f"data.demonstrations={folder / 'demonstrations.jsonl'}",
        f"data.comparisons={folder / 'rankings.jsonl'}", f"data.prompts={folder / 'prompts.jsonl'}",
        f"reward.data.train={folder / 'rankings.jsonl'}", "sft.max_epochs=2", "sft.data.batch_size=2",
        "reward.data.batch_size=2", "ppo.rollouts=3", "ppo.data.batch_size=4", "ppo.critic=policy",
        "ppo.data.max_prompt_length=16", "ppo.sampling.max_new_tokens=6",
        "+checkpoint.every_n_minutes=null", "+checkpoint.every_n_steps=1",
        "+model.lora={r: 4, target_modules: [q_proj, v_proj, down_proj]}",
        *(f"{stage}.optimizer.lr=1.0e-2" for stage in STAGES),
    ]  # fmt: skip


def go(words, run_dir, after=None):
    node = f"{{_target_: tests.integration.test_resume_cli.Stop, after: {after}}}"
    stop = [] if after is None else [f"+callbacks.stop={node}", "trusted_targets=[tests]"]
    return run_pipeline(compose([*words, f"run_dir={run_dir}", *stop]))


def exported(run_dir):
    files = [file for stage in STAGES for file in sorted((run_dir / stage).rglob("*.safetensors"))]
    assert len(files) == 2 * len(STAGES)
    return [sha256(file) for file in files]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, go(words, folder)


def test_every_stage_hands_on_a_plain_model_and_its_adapter(whole):
    folder, _ = whole
    start = dict(tiny.policy(scale=0.3).named_parameters())
    for stage, before in (("sft", start), ("ppo", None)):
        before = before or dict(AutoModelForCausalLM.from_pretrained(folder / "sft").named_parameters())
        after = dict(AutoModelForCausalLM.from_pretrained(folder / stage).named_parameters())
        moved = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
        assert moved == {"q_proj", "v_proj", "down_proj"}
        written = json.loads((folder / stage / "adapter" / "adapter_config.json").read_text())
        assert written["r"] == 4 and len(written["target_modules"]) == 6


def test_checkpoints_hold_each_base_weight_once_and_optimizer_state_of_adapters_only(whole):
    folder, _ = whole
    path = checkpoints(folder / "checkpoints" / "ppo")[0]
    assert len(DurableCheckpointIO().load_checkpoint(path)["optimizer_states"][0]["state"]) == 2 * (2 * 6) + 1
    with safe_open(path / "tensors.safetensors", framework="pt") as stored:
        names = [name for name in stored.keys() if name.startswith("state_dict.")]  # noqa: SIM118
    plain = [name for name in names if ".lora_" not in name]
    assert len(names) - len(plain) == 2 * (2 * 6)
    assert len(plain) == len(dict(tiny.policy().named_parameters())) + 1  # the head of the critic


def test_a_run_stopped_again_and_again_ends_where_an_uninterrupted_one_ends(words, whole, tmp_path):
    folder, metrics = whole
    stops = 0
    while True:
        try:
            found = go([*words, "resume=auto"], tmp_path, after=2)
            break
        except SystemError:
            stops += 1
    assert stops >= 3
    assert exported(tmp_path) == exported(folder)
    same = {name: value for name, value in metrics.items() if not name.startswith("perf/")}
    assert {name: value for name, value in found.items() if name in same} == same
