"""Bugs of other systems in what a checkpoint holds, when it is written, and what a resumed run does with it."""

import copy
import json
import subprocess
import sys
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils._pytree import tree_leaves

from rlhf_lightning.config.compose import compose
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.labelling import SamplingModule
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules import SFTModule
from rlhf_lightning.optim.kl_controllers import AdaptiveKL, LogSpaceKL
from rlhf_lightning.optim.schedules import linear
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer
from rlhf_lightning.stages.pipeline import run as run_pipeline
from tests.gates.gate_sources import ROOT
from tests.support import phases, tiny
from tests.support.scene import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),  # the run is resumed without its saver
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),  # after it is what we want
]
ROLLOUTS, UPDATES = 4, 4  # two rollouts of four prompts are a pass over the data
CONTROLLERS = {
    "log-space": lambda: LogSpaceKL(init_coef=0.1, target=0.5),
    "adaptive": lambda: AdaptiveKL(init_coef=0.1, target=0.5, horizon=20),
}


class Trail(lightning.Callback):
    """The KL coefficient in each rollout, and the optimizer's state when training starts."""

    def __init__(self):
        self.coefs, self.at_start = [], None

    def on_train_batch_start(self, trainer, module, *_):
        if self.at_start is None:
            self.at_start = copy.deepcopy(trainer.optimizers[0].state_dict())

    def on_train_batch_end(self, trainer, module, *_):
        self.coefs.append(float(trainer.callback_metrics["objective/kl_coef"]))


def ppo(folder, callbacks=(), kl="log-space", resume=None):
    module = phases.ppo_module(optimizer=partial(torch.optim.AdamW, lr=1e-2), num_minibatches=2)
    module.kl_controller = CONTROLLERS[kl]()
    data = PromptData(
        folder / "prompts.jsonl", None, tiny.tokenizer(), batch_size=4, rollouts=ROLLOUTS, validation_fraction=0.0
    )
    return train(module, data, callbacks, resume=resume)


def sft(folder, callbacks=(), resume=None):
    """Two epochs of two steps, each of two micro-batches."""
    data = DemonstrationData(
        folder / "demonstrations.jsonl", None, tiny.tokenizer(), batch_size=4, micro_batch_size=2,
        validation_fraction=0.0,
    )  # fmt: skip
    module = SFTModule(tiny.policy(), tiny.tokenizer(), partial(torch.optim.AdamW, lr=1e-2), linear)
    return train(module, data, callbacks, epochs=2, resume=resume)


def assert_same(a, b):
    leaves, others = tree_leaves(a), tree_leaves(b)
    assert len(leaves) == len(others) > 0
    for x, y in zip(leaves, others, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of PPO, with a checkpoint wherever Lightning's own callback makes one when asked always."""
    folder = phases.write(tmp_path_factory.mktemp("whole"))
    trail = Trail()
    saver = ModelCheckpoint(folder / "ckpt", "{step}", every_n_train_steps=1, save_top_k=-1)
    module, run = ppo(folder, [trail, saver])
    return folder, module, run, trail


def test_checkpoints_fall_between_rollouts_only(whole):
    """TRL: a resume inside a rollout window ended 0.014 away. Asked for one after every step, Lightning saves here
    once a rollout, when nothing of it is left to learn from."""
    folder = whole[0]
    expected = {f"step={UPDATES * number}.ckpt" for number in range(1, ROLLOUTS + 1)}
    assert {path.name for path in (folder / "ckpt").iterdir()} == expected
    for number in range(1, ROLLOUTS + 1):
        state = torch.load(folder / "ckpt" / f"step={UPDATES * number}.ckpt", weights_only=True)
        assert state["rlhf"]["rollouts"] == number and state["rlhf"]["optimizer_steps"] == UPDATES * number


@pytest.mark.parametrize("after", [1, 2, 3], ids=["within a pass", "at the end of a pass", "before the last rollout"])
def test_ppo_resumed_at_any_boundary_takes_the_steps_that_were_left(whole, after):
    """verl PR 5725, issue 7401: at an epoch boundary it trained zero steps and exited 0."""
    folder, module, run, _ = whole
    again = Trail()
    resumed, other = ppo(folder, [again], resume=folder / "ckpt" / f"step={UPDATES * after}.ckpt")
    assert len(again.coefs) == ROLLOUTS - after and other.global_step == run.global_step == ROLLOUTS * UPDATES
    assert_same(resumed.state_dict(), module.state_dict())


@pytest.mark.parametrize("name", ["epoch=0-step=2.ckpt", "epoch=0-step=1.ckpt", "epoch=1-step=3.ckpt"])
def test_sft_resumed_at_any_boundary_takes_the_steps_that_were_left(tmp_path, name):
    """The same bug: at the end of an epoch, and within one."""
    folder = phases.write(tmp_path)
    saver = ModelCheckpoint(folder / "ckpt", every_n_train_steps=1, save_top_k=-1)
    module, run = sft(folder, [saver])
    assert run.global_step == 4
    resumed, other = sft(folder, resume=folder / "ckpt" / name)
    assert other.global_step == 4
    assert_same([resumed.state_dict(), other.optimizers[0].state_dict()],
                [module.state_dict(), run.optimizers[0].state_dict()])  # fmt: skip


def finished(tmp_path):
    """An SFT stage that is done, its last checkpoint, and the words that would run it again from there."""
    folder = phases.write(tmp_path)
    for name in ("model", "again"):
        (folder / name).mkdir()
    tiny.policy().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    words = [
        "stage=sft", "task=custom", "logger=none", "trainer=cpu", f"model.path={folder / 'model'}", "sft.max_epochs=1",
        f"data.demonstrations={folder / 'demonstrations.jsonl'}", "sft.data.batch_size=2",
    ]  # fmt: skip
    saver = f"{{_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: {folder / 'ckpt'}, filename: last}}"
    run_pipeline(compose([*words, f"run_dir={folder / 'run'}", f"+callbacks.saver={saver}"]))
    return folder, [*words, f"run_dir={folder / 'again'}", f"resume={folder / 'ckpt' / 'last.ckpt'}"]


def test_resuming_a_finished_run_is_an_error_and_not_zero_steps(tmp_path):
    """verl PR 5725 once more: 0 steps done is never exit status 0."""
    _, words = finished(tmp_path)
    with pytest.raises(CheckpointError, match="no step was left to train"):
        run_pipeline(compose(words))


def test_a_resumed_run_has_the_adam_moments_of_policy_and_critic(whole, tmp_path):
    """NeMo-RL PR 3171: both optimizers started from scratch, silently."""
    folder, module, *_ = whole
    path = folder / "ckpt" / f"step={2 * UPDATES}.ckpt"
    saved = torch.load(path, weights_only=True)
    again = Trail()
    ppo(folder, [again], resume=path)
    assert_same(again.at_start["state"], saved["optimizer_states"][0]["state"])
    assert [group["name"] for group in again.at_start["param_groups"]] == ["policy", "critic"]
    sizes = [len(group["params"]) for group in again.at_start["param_groups"]]
    assert len(again.at_start["state"]) == sum(sizes) and min(sizes) > 5
    assert {int(state["step"]) for state in again.at_start["state"].values()} == {2 * UPDATES}
    assert all(state["exp_avg_sq"].abs().sum() > 0 for state in again.at_start["state"].values())
    saved["optimizer_states"][0]["state"] = {}
    torch.save(saved, tmp_path / "forgetful.ckpt")
    forgetful, _ = ppo(folder, resume=tmp_path / "forgetful.ckpt")
    assert not torch.equal(phases.flat(forgetful.policy), phases.flat(module.policy))  # it would have been seen


@pytest.mark.parametrize("kl", list(CONTROLLERS))
def test_the_kl_coefficient_goes_on_where_it_was(tmp_path, kl):
    """verl issue 2653, ray issue 22444, OpenRLHF, SkyRL: beta went back to its first value."""
    folder, trail, again = phases.write(tmp_path), Trail(), Trail()
    stop = phases.SaveAt(2, folder / "stop.ckpt")
    module, _ = ppo(folder, [trail, stop], kl)
    resumed, _ = ppo(folder, [again], kl, resume=folder / "stop.ckpt")
    assert len(set(trail.coefs)) == ROLLOUTS  # it moves, so that going back would show
    assert again.coefs == trail.coefs[2:]
    assert resumed.kl_controller.state_dict() == module.kl_controller.state_dict()


def test_the_critic_is_saved_and_held_out_prompts_crash_nothing(tmp_path):
    """TRL: no value model in the checkpoint, and evaluate raised. Held-out prompts are answered after training here."""
    folder = phases.write(tmp_path)
    data = PromptData(
        folder / "prompts.jsonl", None, tiny.tokenizer(), batch_size=4, rollouts=1, validation_fraction=0.5
    )
    module, run = phases.ppo_module(num_minibatches=1), phases.trainer()
    run.fit(module, datamodule=data)
    run.save_checkpoint(folder / "end.ckpt")
    saved = torch.load(folder / "end.ckpt", weights_only=True)["state_dict"]
    critic = {name.removeprefix("critic."): value for name, value in saved.items() if name.startswith("critic.")}
    assert_same(critic, module.critic.state_dict())
    exported = Pretrained(str(module.export(folder / "ppo", {"stage": "ppo"})))
    judge = SamplingModule(
        exported, [FunctionScorer(phases.praise)], reference=exported, sampling=Sampling(max_new_tokens=8)
    )
    run.predict(judge, dataloaders=data.val_dataloader(), return_predictions=False)
    assert len(judge.records) == 4 and all(record["kl"] == pytest.approx(0, abs=1e-5) for record in judge.records)


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    """What is left after a kill before each file operation of writing a folder."""
    command = [sys.executable, "-m", "tests.support.kill_worker", tmp_path_factory.mktemp("kills")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_a_kill_while_a_folder_is_written_leaves_a_whole_one(kills):
    """verl PR 4873: the old one was deleted before the new one was there."""
    assert len(kills) >= 15 and [k["before"] for k in kills].count("rlhf_lightning.exchange") == 1
    for kill in kills:
        assert kill["there"] in ("old", "new")  # never damaged, never half of each, never a moment without
        assert {"old", "new"} & set(kill["copies"])
        assert (kill["later"], kill["left"]) == ("newer", ["policy"])  # the next write succeeds and clears up
    states = [k["there"] for k in kills]
    assert states == sorted(states, reverse=True)  # old until it is new


def test_a_folder_can_be_read_under_its_name_whenever_its_writer_is_killed(kills):
    assert {kill["there"] for kill in kills} == {"old", "new"}
