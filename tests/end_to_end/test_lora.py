"""Adapters from the command line: the stages hand plain models on, and a stopped run ends where a whole one ends."""

import json

import pytest
import torch
from lightning.pytorch import Callback
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from rlhf_lightning.callbacks import BestPolicy
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.training import resume_checks
from tests.support import phases, tiny
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


def test_checkpoints_hold_adapters_and_heads_and_of_the_base_a_checksum(whole):
    folder, _ = whole
    path = checkpoints(folder / "checkpoints" / "ppo")[0]
    saved = DurableCheckpointIO().load_checkpoint(path)
    assert len(saved["optimizer_states"][0]["state"]) == 2 * (2 * 6) + 1
    assert len(saved["rlhf"]["frozen"][resume_checks.BASE]) == 64
    with safe_open(path / "tensors.safetensors", framework="pt") as stored:
        names = [name for name in stored.keys() if name.startswith("state_dict.")]  # noqa: SIM118
    assert [name for name in names if ".lora_" not in name] == ["state_dict.critic.model.score.weight"]
    assert len(names) == 2 * (2 * 6) + 1


def test_a_run_stopped_again_and_again_ends_where_an_uninterrupted_one_ends(words, whole, tmp_path):
    folder, metrics = whole
    found, stops = go_in_pieces(words, tmp_path)
    assert stops >= 3
    assert exported(tmp_path) == exported(folder) and len(exported(folder)) == 2 * len(STAGES)
    assert_same_metrics(metrics, found)


def test_the_best_policy_is_kept_as_its_adapters_and_comes_back(tmp_path):
    best, seen = BestPolicy(window=1, max_kl=1e9), []

    class Look(Callback):
        def on_train_batch_end(self, trainer, module, *given):
            seen.append(phases.flat(module.policy))

    module, _ = phases.ppo(
        phases.write(tmp_path), phases.ppo_module(lora=True), rollouts=3, batch=4, callbacks=[Look(), best]
    )
    assert all(".lora_" in name for name in best.state_dict()["weights"]) and best.best["rollout"] < 3
    assert torch.equal(phases.flat(module.policy), seen[int(best.best["rollout"]) - 1])


def test_a_checkpoint_of_adapters_on_another_base_is_refused(tmp_path):
    phases.write(tmp_path)
    plugins = {"plugins": [DurableCheckpointIO()]}
    module, _ = phases.sft(tmp_path, lora=True, callbacks=[phases.SaveAt(2, tmp_path / "saved")], **plugins)
    again, _ = phases.sft(tmp_path, lora=True, resume=tmp_path / "saved", **plugins)
    assert torch.equal(phases.flat(again.policy), phases.flat(module.policy))
    other = phases.SFTModule(tiny.adapted(tiny.policy(), True), tiny.tokenizer(), phases.sgd(0.1), phases.linear)
    other.trainer = phases.trainer(accumulate=2)
    other.configure_model()
    with torch.no_grad():
        other.policy.lm_head.weight[3, 1] += 1e-6
    says = f"^the {resume_checks.BASE} has other weights than when this checkpoint was written: [^.]*$"
    with pytest.raises(CheckpointError, match=says):
        other.on_load_checkpoint(DurableCheckpointIO().load_checkpoint(tmp_path / "saved"))
