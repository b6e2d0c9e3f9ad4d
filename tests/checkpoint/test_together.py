"""A checkpoint that several processes write together is one folder, which any number of them can read."""

import copy
import errno
import json
import os
import random
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lightning.checkpoint import io as files
from rlhf_lightning.checkpoint import provenance, verify_folder
from rlhf_lightning.checkpoint.codec import TREE, read_state, read_tensors
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, newest_checkpoint
from rlhf_lightning.checkpoint.processes import Processes
from rlhf_lightning.checkpoint.tensors import Rows, own_rows
from rlhf_lightning.errors import CheckpointError, DiskError, NumericalError
from tests.support.threads import together

WHOLE = {
    "even": torch.arange(32.0).reshape(8, 4),
    "uneven": torch.arange(10.0).reshape(5, 2).bfloat16(),
    "one row": torch.arange(3).reshape(1, 3),
    "vector": torch.arange(6) > 2,
}


def test_an_error_of_one_process_is_raised_in_all_and_in_its_own_with_its_traceback(monkeypatch):
    error = DiskError("full")

    def work():
        raise error

    def gather(values, value, group):
        values[:] = [(1, None), copy.deepcopy(value)]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    with pytest.raises(DiskError) as raised:
        Processes("a group", index=1, size=2).agree(work)
    assert raised.value is error and "work" in {frame.name for frame in raised.traceback}
    assert {type(found) for found in together(3, lambda rank: rank.agree(work if rank.index else int))} == {DiskError}


def state(rank, whole=WHOLE):
    """The state of a step as one process of several has it."""

    def own(tensor):
        start, stop = own_rows(len(tensor), rank.index, rank.size)
        return Rows(tensor[start:stop], start, tuple(tensor.shape))

    weights = {name: own(tensor) for name, tensor in whole.items()}
    tied = own(whole["even"])
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": own(whole["even"] + 1)}}
    return {"global_step": 3, "state_dict": {**weights, "tied": tied, "again": tied}, "optimizer_states": [moments]}


def save(size, path, make=state, config=""):
    """What each of ``size`` ranks gets from a save, None or an error."""

    def work(rank):
        io = DurableCheckpointIO(config)
        io.writers = rank
        return io.save_checkpoint(make(rank), path)

    return together(size, work)


def assert_whole(found):
    for name, tensor in {**WHOLE, "tied": WHOLE["even"], "again": WHOLE["even"]}.items():
        assert found["state_dict"][name].dtype == tensor.dtype and torch.equal(found["state_dict"][name], tensor), name
    assert torch.equal(found["optimizer_states"][0][0]["exp_avg"], WHOLE["even"] + 1)
    assert found["optimizer_states"][0][0]["step"] == 3 and found["global_step"] == 3


@pytest.mark.parametrize("written", [1, 2, 3, 4, 9])
def test_what_any_number_of_processes_wrote_any_number_reads_and_each_its_rows_only(tmp_path, written):
    assert save(written, tmp_path / "step-000003", config="a: 1") == [None] * written
    path = tmp_path / "step-000003"
    assert verify_folder(path)["global_step"] == 3 and (path / "config.yaml").read_text() == "a: 1"
    assert_whole(read_state(path))
    for size in (1, 2, 4):

        def read(rank):
            tree = rank_io(rank).open_checkpoint(path)
            return read_tensors(tree, lambda s: s.read(*own_rows(s.shape[0], rank.index, rank.size)) if s.bounds else s)

        for index, found in enumerate(together(size, read)):
            for name, tensor in WHOLE.items():
                assert torch.equal(found["state_dict"][name], tensor[slice(*own_rows(len(tensor), index, size))]), name


def rank_io(rank):
    io = DurableCheckpointIO()
    io.readers = rank
    return io


def test_the_tree_says_what_a_tensor_is_and_where_its_rows_are(tmp_path):
    save(4, tmp_path / "s")
    tree = json.loads((tmp_path / "s" / TREE).read_text())
    assert tree["state_dict"]["uneven"] == {
        "tensor": {"name": "state_dict.uneven", "dtype": "BF16", "shape": [5, 2], "rows": [0, 2, 4, 5, 5]}
    }
    assert tree["state_dict"]["again"] == tree["state_dict"]["tied"] == tree["state_dict"]["even"]
    names = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert names == [
        provenance.PROVENANCE,
        TREE,
        *(f"tensors-{k}.safetensors" for k in (1, 2, 3)),
        "tensors.safetensors",
    ]
    third = load_file(tmp_path / "s" / "tensors-2.safetensors")
    assert third["state_dict.uneven"].tolist() == [[8, 9]] and "state_dict.one row" not in third
    assert "optimizer_states.0.0.step" not in third and "state_dict.tied" not in third


def test_a_process_that_shares_nothing_writes_no_file(tmp_path):
    def plain(rank):
        return {"state_dict": {"a": torch.ones(2)}}

    assert save(2, tmp_path / "s", plain) == [None, None]
    assert not (tmp_path / "s" / "tensors-1.safetensors").exists()
    assert read_state(tmp_path / "s")["state_dict"]["a"].tolist() == [1, 1]


def test_numbers_of_any_process_that_are_not_finite_are_refused_by_all(tmp_path):
    def broken(rank):
        given = state(rank)
        if rank.index == 1:
            given["optimizer_states"][0][0]["exp_avg"].local.fill_(float("nan"))
        return given

    found = save(3, tmp_path / "s", broken)
    assert {type(error) for error in found} == {NumericalError} and len(set(map(str, found))) == 1
    assert "optimizer_states.0.0.exp_avg is not finite" in str(found[0]) and not list(tmp_path.iterdir())


def test_what_a_process_cannot_store_is_refused_by_all(tmp_path):
    found = save(2, tmp_path / "s", lambda rank: {**state(rank), "mine": tmp_path if rank.index else None})
    assert all(isinstance(error, CheckpointError) and "mine is a pathlib" in str(error) for error in found)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("full", [0, 1])
def test_case_07_a_disk_that_is_full_for_one_process_is_the_same_error_in_all(tmp_path, monkeypatch, full):
    save(2, tmp_path / "step-000002")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fsync, name = os.fsync, files.file_of(full)

    def refuse(handle):
        if os.readlink(f"/proc/self/fd/{handle}").endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    found = save(2, tmp_path / "step-000003")
    assert {type(error) for error in found} == {DiskError} and len(set(map(str, found))) == 1
    assert f"step-000003: cannot write here ([Errno 28] No space left on device: '{name}')" in str(found[1])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def test_case_07_a_checkpoint_that_cannot_fit_is_refused_by_all_with_the_bytes_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(files.write_folder.__globals__["shutil"], "disk_usage", lambda path: type("D", (), {"free": 9}))
    size = sum(tensor.nbytes for tensor in WHOLE.values()) + WHOLE["even"].nbytes + 4
    found = save(2, tmp_path / "s")
    assert all(
        isinstance(error, DiskError) and f"; {size} bytes are needed and 9 free" in str(error) for error in found
    )


def test_each_file_is_looked_at_by_one_process_and_damage_is_named_to_all(tmp_path, monkeypatch):
    save(4, tmp_path / "step-000003")
    looked, sha256 = Counter(), provenance.sha256

    def look(file):
        looked[file.name] += 1
        return sha256(file)

    monkeypatch.setattr(provenance, "sha256", look)
    together(3, lambda rank: assert_whole(rank_io(rank).load_checkpoint(tmp_path / "step-000003")))
    assert len(looked) == 5 and set(looked.values()) == {1}
    file = tmp_path / "step-000003" / "tensors-2.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = together(3, lambda rank: rank_io(rank).load_checkpoint(tmp_path / "step-000003"))
    assert all(isinstance(error, CheckpointError) and f"{file}: checksum differs" in str(error) for error in found)


def test_case_04_and_05_every_flip_and_truncation_of_a_file_of_any_process_is_found(tmp_path):
    for step in (2, 3):
        save(3, tmp_path / f"step-{step:06d}")
    draw, newest = random.Random(5), tmp_path / "step-000003"
    hit = Counter()
    for number in range(250):
        file = draw.choice(sorted(newest.iterdir()))
        content = file.read_bytes()
        changed = bytearray(content)
        if number < 200:
            bit = draw.randrange(8 * len(content))
            changed[bit // 8] ^= 1 << bit % 8
        else:
            del changed[draw.randrange(len(content)) :]
        file.write_bytes(changed)
        said = []
        assert newest_checkpoint(tmp_path, said.append) == tmp_path / "step-000002", file
        assert str(file) in said[0]
        file.write_bytes(content)
        hit[file.name] += 1
    assert len(hit) == 5 and newest_checkpoint(tmp_path, pytest.fail) == newest
