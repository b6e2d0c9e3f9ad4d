"""Checkpoints that a thread writes while the run goes on."""

import threading
import time

import pytest
import torch

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint import read_provenance
from rlhf_lightning.checkpoint.background import Copies, Writing
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.checkpoint.nonfinite import named_tensors
from rlhf_lightning.checkpoint.tensors import Rows
from rlhf_lightning.errors import DiskError
from rlhf_lightning.modules import SFTModule
from tests.support import jobs, phases, tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


class Slow(DurableCheckpointIO):
    """Begins to write a step when it is told to, and notes what happens."""

    def __init__(self, log, wait=lambda step: None, full=()):
        super().__init__()
        self.log, self.wait, self.full = log, wait, full
        self.held = []  # by save, its tensors

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.wait(checkpoint["global_step"])
        self.held.append([tensor for _, tensor in named_tensors(checkpoint) if tensor.numel()])
        if checkpoint["global_step"] in self.full:
            raise DiskError("disk full")
        super().save_checkpoint(checkpoint, path, storage_options)
        self.log.append(f"wrote {path.name}")


class Watched(SFTModule):
    """Notes its steps."""

    notes: list

    def training_step(self, batch, batch_idx):
        self.notes.append(f"step {self.trainer.global_step + 1}")
        return super().training_step(batch, batch_idx)


def sft(folder, log, io=None, steps=4, **options):
    """Some steps of SFT with a checkpoint after each, in the background if nothing else is said."""
    _, data = jobs.sft(jobs.write(folder), 4)
    module = Watched(tiny.policy(), tiny.tokenizer(), jobs.ADAM)
    module.notes = log
    given = {"every_n_steps": 1, "keep": 9, "asynchronous": True, **options}
    saver = DurableCheckpoint(folder / "checkpoints", **given)
    fit = phases.trainer(
        data.accumulate_for(1), 2, [saver], checkpointing=True, plugins=[io or Slow(log)], max_steps=steps
    )
    fit.fit(module, datamodule=data)
    assert saver._copies._kept == []
    return [path.name for path in checkpoints(folder / "checkpoints")]


def tensors_of(folder):
    return {p.name: read_provenance(p)["files"]["tensors.safetensors"] for p in (folder / "checkpoints").iterdir()}


def test_what_a_thread_writes_is_the_moment_of_the_save_and_the_run_goes_on_meanwhile(tmp_path):
    for name, asynchronous in (("now", False), ("later", True)):
        (tmp_path / name).mkdir()
        log, goes_on = [], threading.Event()

        def until_the_next_step(step, log=log, goes_on=goes_on):
            while step < 3 and f"step {step + 1}" not in log and not goes_on.is_set():
                time.sleep(0.01)
            time.sleep(0.1)  # longer than a step takes: the next save would copy over what is not written yet

        io = Slow(log, until_the_next_step if asynchronous else lambda step: None)
        assert sft(tmp_path / name, log, io) == ["step-000003", "step-000002", "step-000001"]
        if asynchronous:
            assert log.index("wrote step-000001") > log.index("step 2")
            assert log.index("wrote step-000001") < log.index("wrote step-000002")
            assert log[-1] == "wrote end"
            *copies, weights = [{tensor.data_ptr() for tensor in tensors} for tensors in io.held]
            assert copies[0] == copies[1] == copies[2] and not copies[2] & weights
    assert tensors_of(tmp_path / "now") == tensors_of(tmp_path / "later") and len(tensors_of(tmp_path / "now")) == 4


def test_the_next_save_waits_and_nothing_old_goes_before_the_new_one_is_complete(tmp_path):
    log, seen = [], []

    def look(step):
        time.sleep(0.1)  # longer than a step takes
        seen.append((step, sorted(path.name for path in checkpoints(tmp_path / "checkpoints"))))

    sft(tmp_path, log, Slow(log, look), keep=2)
    assert seen[:3] == [(1, []), (2, ["step-000001"]), (3, ["step-000001", "step-000002"])]
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-000003", "step-000002"]


@pytest.mark.parametrize("full", [2, 3])
def test_an_error_of_the_thread_is_that_of_the_next_boundary(tmp_path, full):
    log = []
    with pytest.raises(DiskError, match="disk full"):
        sft(tmp_path, log, Slow(log, full=(full,)))
    assert log.count(f"step {full + 1}") == 2 and f"step {full + 2}" not in log  # two micro-batches
    with pytest.warns(UserWarning, match=f"no checkpoint at step {full}, training goes on: disk full"):
        saved = sft(tmp_path, log, Slow(log, full=(full,)), on_error="warn")
    assert f"step-00000{full}" not in saved and len(saved) == 2


def test_an_error_of_the_thread_does_not_wait_for_the_next_save(tmp_path):
    log = []
    with pytest.raises(DiskError, match="disk full"):
        sft(tmp_path, log, Slow(log, full=(2,)), every_n_steps=2, every_n_minutes=None)
    assert "step 3" in log and "step 4" not in log


def test_a_full_disk_at_the_end_is_told_of_and_no_error(tmp_path):
    log = []
    with pytest.warns(UserWarning, match="the end is not saved, so that the stage cannot be made longer: disk full"):
        assert sft(tmp_path, log, Slow(log, full=(4,)))[0] == "step-000003"


def test_a_save_that_was_begun_is_completed_when_the_run_ends_with_an_error(tmp_path):
    class Breaks(Watched):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 2:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    log = []
    io = Slow(log, lambda step: time.sleep(0.3 if step == 2 else 0))
    module, (_, data) = Breaks(tiny.policy(), tiny.tokenizer(), jobs.ADAM), jobs.sft(jobs.write(tmp_path), 4)
    module.notes = log
    saver = DurableCheckpoint(tmp_path / "checkpoints", every_n_steps=1, asynchronous=True)
    fit = phases.trainer(data.accumulate_for(1), 2, [saver], checkpointing=True, plugins=[io])
    with pytest.raises(RuntimeError, match="broken"):
        fit.fit(module, datamodule=data)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-000002", "step-000001"]


def test_a_copy_shares_nothing_with_the_state_and_keeps_what_is_tied():
    weight = torch.ones(4, 2)
    state = {"a": weight, "b": [weight, (1, "x")], "rows": Rows(weight[1:2], 1, (4, 2)), "empty": torch.ones(0)}
    copy = Copies().of(state)
    weight.zero_()
    state["b"].append(2)
    assert copy["a"].sum() == 8 and copy["b"][0] is copy["a"] and copy["b"][1:] == [(1, "x")]
    assert copy["rows"].local.tolist() == [[1, 1]] and (copy["rows"].start, copy["rows"].shape) == (1, (4, 2))
    assert copy["empty"].shape == (0,)


def test_a_copy_is_made_in_the_memory_of_the_one_before():
    copies = Copies()
    state = {"a": torch.ones(4, 2), "b": torch.ones(4, 2).T, "c": torch.ones(4, 2).double(), "d": torch.ones(9)}
    places = {tensor.data_ptr() for tensor in copies.of(state).values()}
    state = {"b": torch.full((2, 4), 3.0), "c": torch.full((4, 2), 4.0).double(), "d": torch.ones(8), "e": state["a"]}
    again = copies.of(state)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert [again[name].data_ptr() in places for name in "bcde"] == [True, True, False, True]
    assert not {tensor.data_ptr() for tensor in again.values()} & {tensor.data_ptr() for tensor in state.values()}


def test_a_thread_tells_when_it_is_done_and_what_went_wrong(tmp_path):
    hold = threading.Event()

    def write():
        hold.wait(20)
        raise DiskError("full")

    writing = Writing(tmp_path, write, background=True)
    assert not writing.done() and not writing.done(0.01)
    hold.set()
    assert str(writing.error()) == "full" and writing.done()
