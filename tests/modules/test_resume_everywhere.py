"""Runs that were stopped anywhere go on to the same end: a checkpoint after every step, and a fit from each of them."""

import json
from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_leaves

from rlhf_lightning.callbacks import DurableCheckpoint, History
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints, newest_checkpoint
from rlhf_lightning.errors import CheckpointError
from tests.support import phases

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


def sft(folder, **options):
    return phases.sft(folder, epochs=3, **options)


def ppo(folder, **options):
    module = phases.ppo_module(optimizer=partial(torch.optim.AdamW, lr=1e-2))
    return phases.ppo(folder, module, rollouts=4, batch=4, **options)


PHASES = {"sft": sft, "reward": phases.reward, "ppo": ppo}


def fit(phase, data, run, **options):
    """Fit with a history and a checkpoint after every step under ``run``."""
    callbacks = [
        History(run / "history.csv", every_n_steps=1),
        DurableCheckpoint(run / "checkpoints", every_n_steps=1, keep=100),
    ]
    options = {"callbacks": callbacks, "plugins": [DurableCheckpointIO()], **options}
    return PHASES[phase](data, checkpointing=True, **options)


def state(run):
    """Weights and optimizer as one list of numbers and tensors."""
    return tree_leaves([run.lightning_module.state_dict(), run.optimizers[0].state_dict(), run.global_step])


def assert_equal(leaves, others):
    assert len(leaves) == len(others) > 1
    for x, y in zip(leaves, others, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def numbers(file):
    """The history without the column that tells the time."""
    rows = [line.split(",") for line in file.read_text().splitlines()]
    clocks = {i for i, name in enumerate(rows[0]) if name == "seconds" or name.startswith("perf/")}
    return [[cell for i, cell in enumerate(row) if i not in clocks] for row in rows]


@pytest.fixture(scope="module", params=list(PHASES))
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    data = phases.write(folder)
    return request.param, data, folder, *fit(request.param, data, folder)


def test_from_every_step_the_end_is_bit_for_bit_the_same(whole, tmp_path):
    phase, data, folder, module, run = whole
    found = checkpoints(folder / "checkpoints")
    assert len(found) >= 2
    for path in found:
        other = tmp_path / path.name
        other.mkdir()
        (other / "history.csv").write_bytes((folder / "history.csv").read_bytes())
        resumed, again = fit(phase, data, other, resume=path)
        assert_equal(state(again), state(run))
        assert numbers(other / "history.csv") == numbers(folder / "history.csv")
        if phase == "ppo":
            assert resumed.kl_controller.state_dict() == module.kl_controller.state_dict()


def test_the_newest_whole_checkpoint_is_taken_and_a_damaged_one_named(whole):
    folder = whole[2]
    newest, before = checkpoints(folder / "checkpoints")[:2]
    file = newest / "tensors.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = []
    assert newest_checkpoint(folder / "checkpoints", said.append) == before
    assert newest.name in said[0] and "tensors.safetensors" in said[0] and "checksum" in said[0]
    with pytest.raises(CheckpointError, match="checksum differs"):
        DurableCheckpointIO().load_checkpoint(newest)
    file.write_bytes(content)


def test_a_checkpoint_holds_no_code(whole):
    folder = whole[2]
    for path in checkpoints(folder / "checkpoints"):
        assert {file.name for file in path.iterdir()} == {"provenance.json", "state.json", "tensors.safetensors"}
        json.loads((path / "state.json").read_text())


def test_only_the_newest_are_kept_and_the_last_step_is_left_to_the_export(tmp_path):
    data = phases.write(tmp_path)
    saver = DurableCheckpoint(tmp_path / "checkpoints", every_n_steps=1, keep=2)
    sft(data, callbacks=[saver], plugins=[DurableCheckpointIO()], checkpointing=True)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-000005", "step-000004"]


def test_minutes_are_a_reason_to_save_as_well(tmp_path):
    data = phases.write(tmp_path)
    saver = DurableCheckpoint(tmp_path / "checkpoints", every_n_minutes=1e-9, keep=9)
    sft(data, callbacks=[saver], plugins=[DurableCheckpointIO()], checkpointing=True)
    assert len(checkpoints(tmp_path / "checkpoints")) == 5
    patient = DurableCheckpoint(tmp_path / "patient", every_n_minutes=60.0)
    sft(data, callbacks=[patient], plugins=[DurableCheckpointIO()], checkpointing=True)
    assert checkpoints(tmp_path / "patient") == []
