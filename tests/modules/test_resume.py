"""A run that stops at a rollout boundary and is resumed ends bit for bit where an uninterrupted one ends."""

from functools import partial

import lightning
import pytest
import torch
from torch.utils._pytree import tree_leaves

from rlhf_lightning.errors import CheckpointError, ConfigError
from tests.support import phases, tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
ROLLOUTS = 5  # of four prompts out of eight: a pass over the data ends after every second one


class SaveEach(lightning.Callback):
    """A checkpoint after every batch, and what was sampled in it."""

    def __init__(self, folder=None):
        self.folder = folder
        self.answers = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if getattr(module, "last_experience", None) is not None:
            rollout = module.last_experience.rollout
            self.answers.append((rollout.prompt_ids.tolist(), rollout.response_ids.tolist()))
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"{batch_idx + 1}.ckpt")


def assert_same_state(run, other):
    """Weights, optimizer and learning rate, to the last bit."""
    for a, b in (
        (run.lightning_module.state_dict(), other.lightning_module.state_dict()),
        (run.optimizers[0].state_dict(), other.optimizers[0].state_dict()),
        ([s.scheduler.state_dict()["last_epoch"] for s in run.lr_scheduler_configs],
         [s.scheduler.state_dict()["last_epoch"] for s in other.lr_scheduler_configs]),
    ):  # fmt: skip
        leaves, others = tree_leaves(a), tree_leaves(b)
        assert len(leaves) == len(others) > 0
        for x, y in zip(leaves, others, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    assert run.global_step == other.global_step


def ppo(folder, **options):
    module = phases.ppo_module(optimizer=partial(torch.optim.AdamW, lr=1e-2))
    return phases.ppo(folder, module, rollouts=ROLLOUTS, batch=4, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = phases.write(tmp_path_factory.mktemp("resume"))
    watch = SaveEach(folder)
    module, run = ppo(folder, callbacks=[watch])
    return folder, module, run, watch.answers


@pytest.mark.parametrize("after", [1, 2, 3])
def test_ppo_resumed_after_a_rollout_is_the_uninterrupted_run(uninterrupted, after):
    folder, whole, run, answers = uninterrupted
    watch = SaveEach()
    module, resumed = ppo(folder, resume=folder / f"{after}.ckpt", callbacks=[watch])
    assert watch.answers == answers[after:]
    assert_same_state(resumed, run)
    assert module.kl_controller.state_dict() == whole.kl_controller.state_dict()
    for counter in ("rollouts", "optimizer_steps", "episodes", "tokens"):
        assert getattr(module, counter) == getattr(whole, counter) > 0
    skip = ("perf/",)
    logged = {n: float(v) for n, v in resumed.callback_metrics.items() if not n.startswith(skip)}
    assert logged == {n: float(v) for n, v in run.callback_metrics.items() if not n.startswith(skip)}


def test_the_runs_differ_where_they_should(uninterrupted):
    """The test of the tests above: prompts and KL coefficient change from rollout to rollout."""
    folder, whole, _, answers = uninterrupted
    assert len({str(answer) for answer in answers}) == ROLLOUTS
    coefs = [torch.load(folder / f"{i}.ckpt", weights_only=True)["rlhf"]["kl"]["coef"] for i in (1, 3, 5)]
    assert len(set(coefs)) == 3 and coefs[-1] == whole.kl_controller.coef


def test_the_checkpoint_is_plain_and_holds_policy_and_critic_only(uninterrupted):
    folder, module, _, _ = uninterrupted
    checkpoint = torch.load(folder / "3.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"policy", "critic"}
    trained = sum(p.numel() for p in [*module.policy.parameters(), *module.critic.parameters()])
    stored = sum(leaf.numel() for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor))
    streams = tree_leaves(checkpoint["rlhf"]["ranks"])
    generators = sum(stream.numel() for stream in streams if isinstance(stream, torch.Tensor))
    steps = sum(1 for _ in module.policy.parameters()) + sum(1 for _ in module.critic.parameters())
    assert stored == 3 * trained + steps + generators  # weights, two Adam moments and the step of each parameter


def test_a_run_does_not_go_on_beside_another_reference(uninterrupted, monkeypatch):
    folder, *_ = uninterrupted
    monkeypatch.setattr(tiny, "policy", partial(tiny.policy, seed=5))  # of the same shape
    with pytest.raises(CheckpointError, match="the reference has other weights than when this checkpoint was written"):
        ppo(folder, resume=folder / "1.ckpt")


def test_a_checkpoint_of_another_phase_is_refused(uninterrupted, tmp_path):
    folder, *_ = uninterrupted
    _, run = phases.sft(phases.write(tmp_path))
    run.save_checkpoint(tmp_path / "sft.ckpt")
    with pytest.raises((ConfigError, RuntimeError)):
        ppo(folder, resume=tmp_path / "sft.ckpt")


@pytest.mark.parametrize("after", [2, 4, 6])
def test_sft_resumed_within_and_after_an_epoch_is_the_uninterrupted_run(tmp_path, after):
    folder = phases.write(tmp_path)
    _, run = phases.sft(folder, epochs=2, callbacks=[phases.SaveAt(after, folder / "stop.ckpt")])
    _, other = phases.sft(folder, epochs=2, resume=folder / "stop.ckpt")
    assert_same_state(other, run)
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert {name: float(value) for name, value in other.callback_metrics.items()} == logged
