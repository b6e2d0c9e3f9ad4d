"""What a checkpoint of a module holds, which ones are kept, and which are refused. `faults/test_exact_resume.py` shows
that a resumed run ends bit for bit where an uninterrupted one ends."""

import json
from functools import partial
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch.utils._pytree import tree_leaves

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.training.resume_checks import refuse_other_weights
from tests.support import phases, tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


def ppo(folder, **options):
    module = phases.ppo_module(optimizer=partial(torch.optim.AdamW, lr=1e-2))
    return phases.ppo(folder, module, rollouts=4, batch=4, plugins=[DurableCheckpointIO()], **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Data, a PPO run with a checkpoint after every rollout, and those checkpoints, first one first."""
    folder = phases.write(tmp_path_factory.mktemp("resume"))
    saver = DurableCheckpoint(folder / "checkpoints", every_n_steps=1, keep=100)
    module, _ = ppo(folder, callbacks=[saver], checkpointing=True)
    return folder, module, checkpoints(folder / "checkpoints")[::-1]


def test_the_kl_coefficient_of_every_checkpoint_is_another(whole):
    _, module, saved = whole
    coefs = [DurableCheckpointIO().load_checkpoint(path)["rlhf"]["kl"]["coef"] for path in saved]
    assert len({*coefs, module.kl_controller.coef}) == len(saved) + 1 == 4


def test_the_checkpoint_is_plain_and_holds_policy_and_critic_only(whole):
    _, module, saved = whole
    checkpoint = DurableCheckpointIO().load_checkpoint(saved[-1])
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"policy", "critic"}
    trained = sum(p.numel() for p in [*module.policy.parameters(), *module.critic.parameters()])
    stored = sum(leaf.numel() for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor))
    streams = tree_leaves(checkpoint["rlhf"]["ranks"])
    generators = sum(stream.numel() for stream in streams if isinstance(stream, torch.Tensor))
    steps = sum(1 for _ in module.policy.parameters()) + sum(1 for _ in module.critic.parameters())
    assert stored == 3 * trained + steps + generators  # weights, two Adam moments and the step of each parameter


def test_a_checkpoint_holds_no_code(whole):
    for path in whole[2]:
        assert {file.name for file in path.iterdir()} == {"provenance.json", "state.json", "tensors.safetensors"}
        json.loads((path / "state.json").read_text())


def test_a_run_is_not_resumed_beside_another_reference(whole, monkeypatch):
    folder, _, saved = whole
    monkeypatch.setattr(tiny, "policy", partial(tiny.policy, seed=5))  # of the same shape
    with pytest.raises(CheckpointError, match="the reference has other weights than when this checkpoint was written"):
        ppo(folder, resume=saved[0])


def test_of_another_phase_a_checkpoint_is_refused_of_its_own_the_newest_are_kept_and_the_last_is_exported(
    whole, tmp_path
):
    folder, *_ = whole
    saver = DurableCheckpoint(tmp_path, every_n_steps=1, keep=2)
    phases.sft(folder, epochs=3, callbacks=[saver], plugins=[DurableCheckpointIO()], checkpointing=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000005", "step-000004"]
    with pytest.raises((ConfigError, RuntimeError)):
        ppo(folder, resume=checkpoints(tmp_path)[0])


def test_a_saver_brings_its_plugin_unless_another_one_was_given(tmp_path):
    for plugins, kind in (([], DurableCheckpointIO), ([AsyncCheckpointIO()], AsyncCheckpointIO)):
        trainer = lightning.Trainer(accelerator="cpu", logger=False, plugins=plugins)
        DurableCheckpoint(tmp_path).setup(trainer, None, "fit")
        assert isinstance(trainer.strategy.checkpoint_io, kind)


def test_weights_of_another_shape_are_refused_unless_the_module_takes_whatever_is_there():
    layer = SimpleNamespace(strict_loading=True, state_dict=torch.nn.Linear(2, 1).state_dict)
    refuse_other_weights(None, layer)
    refuse_other_weights(layer.state_dict(), layer)
    with pytest.raises(
        CheckpointError, match=r"bias is not there in the checkpoint and \[1\] in the model, and 1 more"
    ):
        refuse_other_weights({"weight": torch.zeros(1, 3)}, layer)
    layer.strict_loading = False
    refuse_other_weights({"weight": torch.zeros(1, 3)}, layer)
