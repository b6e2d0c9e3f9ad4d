"""Servers that sample for PPO and break in the middle of a run (74)."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.errors import NumericalError, RolloutError
from rlhf_lightning.rollout import ServerEngine
from tests.support import phases, tiny
from tests.support.fake_vllm import fake_vllm

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


class Break(Callback):
    """Spoils the server before the second rollout."""

    def __init__(self, spoil):
        self.spoil = spoil

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.rollouts == 1:
            self.spoil()


def fit(server, folder, deadline=60.0, callbacks=(), **options):
    module = phases.ppo_module(optimizer=partial(torch.optim.AdamW, lr=0.1))
    module.engine = ServerEngine([server.url], folder=folder / "server", ram_disk=False, retries=0, deadline=deadline)
    saves = any(isinstance(callback, DurableCheckpoint) for callback in callbacks)
    phases.ppo(
        folder, module, batch=4, callbacks=callbacks, checkpointing=saves, plugins=[DurableCheckpointIO()],
        **options,
    )  # fmt: skip
    return phases.flat(module.policy)


def dies(server):
    server.broken.update(dict.fromkeys(("/pause", "/v1/completions", "/weight_info"), "closed"))


def hangs(server):
    server.broken["/v1/completions"], server.slow_seconds = "slow", 4.0


def hangs_in_an_update(server):
    server.broken["/update_weights"], server.slow_seconds = "slow", 4.0


def keeps_old_weights(server):
    server.stale_from = 1


def is_started_again(server):
    server.resume = lambda body: (server.running.set(), setattr(server, "version", "default"))[1] or {}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = phases.write(tmp_path_factory.mktemp("undisturbed"))
    with fake_vllm(tiny.policy(seed=9)) as server:
        return fit(server, folder)


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (dies, RolloutError, r"http://127\.0\.0\.1:\d+/pause"),
        (hangs, RolloutError, r"/v1/completions gave no answer"),
        (hangs_in_an_update, RolloutError, r"/update_weights.*start it again"),
        (keeps_old_weights, NumericalError, r"log-probabilities of the server are .* has other weights"),
        (is_started_again, RolloutError, r"says that it has the weights 'default'.*it was started again"),
    ],
)  # fmt: skip
def test_case_74_a_run_whose_server_fails_ends_with_its_address_and_resumes_on_another_to_the_same_bits(
    fault, error, says, undisturbed, tmp_path
):
    phases.write(tmp_path)
    saver = DurableCheckpoint(tmp_path / "checkpoints", every_n_steps=1, keep=2)
    with fake_vllm(tiny.policy(seed=9)) as server, pytest.raises(error, match=says) as failed:
        fit(server, tmp_path, 3.0, [saver, Break(partial(fault, server))])
    assert failed.value.exit_code == (4 if error is NumericalError else 7)
    newest = checkpoints(tmp_path / "checkpoints")[0]
    assert newest.name.endswith("1")
    with fake_vllm(tiny.policy(seed=9)) as another:
        assert torch.equal(fit(another, tmp_path, resume=newest), undisturbed)
