"""Adapters from the command line: the stages hand plain models on, and a stopped run ends where a whole one ends."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from tests.support import tiny
from tests.support.small_pipeline import STAGES, assert_same_metrics, exported, go, go_in_pieces, prepare

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return [
        *prepare(tmp_path_factory.mktemp("data")), "ppo.critic=policy",
        "model.lora={r: 4, target_modules: [q_proj, v_proj, down_proj]}",
        *(f"{stage}.optimizer.lr=1.0e-2" for stage in STAGES),
    ]  # fmt: skip


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
    found, stops = go_in_pieces(words, tmp_path)
    assert stops >= 3
    assert exported(tmp_path) == exported(folder) and len(exported(folder)) == 2 * len(STAGES)
    assert_same_metrics(metrics, found)
