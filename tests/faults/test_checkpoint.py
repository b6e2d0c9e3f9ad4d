"""Cases 1 to 10 and 12 to 14: what a kill, a bad disk or a changed run does to checkpoints, and what it never does."""

import errno
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint import folders as handover
from rlhf_lightning.checkpoint import places, provenance, read_provenance
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints, newest_checkpoint
from rlhf_lightning.checkpoint.swap import exchange
from rlhf_lightning.errors import CheckpointError, ConfigError, DiskError
from rlhf_lightning.modules import SFTModule
from rlhf_lightning.stages import changes
from rlhf_lightning.stages.resume import RunFolder
from tests.gates.gate_sources import ROOT
from tests.support import jobs, phases, tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
IO = DurableCheckpointIO()
SEED = 33  # the first kill falls into the fourth save of the first stage, the second into the sixth after that
REASONS = ("checksum", "not readable as JSON", "schema", "bytes, expected")


def state(step):
    model = torch.nn.Linear(20, 10)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 20)).sum().backward()
    optimizer.step()
    return {"global_step": step, "state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints."""
    for step in (1, 2, 3):
        IO.save_checkpoint(state(step), tmp_path / f"step-{step:06d}")
    return tmp_path


def soak(kills, tmp_path, *more):
    """The counts of `benchmarks.soak`."""
    words = ["--kills", str(kills), "--seed", str(SEED), "--json", str(tmp_path / "soak.json"), *more]
    command = [sys.executable, "-m", "benchmarks.soak", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["kills"] == kills and not found["faults"]
    return found


def test_case_01_a_pipeline_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    assert soak(2, tmp_path)["resumes"] >= 1


@pytest.mark.soak
@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_case_01_a_pipeline_that_is_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path, asynchronous):
    assert soak(20, tmp_path, f"checkpoint.asynchronous={asynchronous}")["resumes"] >= 5


@pytest.fixture(scope="module")
def crashes(tmp_path_factory):
    command = [sys.executable, "-m", "tests.support.crash_worker", tmp_path_factory.mktemp("crashes")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def test_case_02_a_crash_at_any_call_of_a_save_leaves_a_checkpoint_that_loads(crashes):
    names = Counter(crash["before"] for crash in crashes)
    assert {"open", "write", "fsync", "rename", "audit", "unlink", "rmdir"} <= set(names) and len(crashes) > 100
    for crash in crashes:
        assert crash["newest"] == f"step-{max(crash['complete']):06d}" and crash["said"] == []
        assert max(crash["complete"]) >= 3  # nothing that was complete before is lost
        assert crash["after"] == [crash["newest"], "step-000005"]  # the next save succeeds and leaves no litter


def test_case_12_two_checkpoints_are_complete_at_every_moment_of_a_save_and_of_its_clearing_up(crashes):
    assert all(len(crash["complete"]) >= 2 for crash in crashes)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second filesystem here")
def test_case_03_the_place_for_temporary_files_has_no_effect(folder, monkeypatch):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        assert os.stat(other).st_dev != os.stat(folder).st_dev
        monkeypatch.setenv("TMPDIR", other)
        monkeypatch.setattr(tempfile, "tempdir", None)
        before = os.stat(other).st_mtime_ns
        IO.save_checkpoint(state(3), folder / "step-000003")
        IO.save_checkpoint(state(4), folder / "step-000004")
        assert os.stat(other).st_mtime_ns == before  # nothing was ever there
    assert [path.name[-1] for path in checkpoints(folder)] == ["4", "3", "2", "1"]
    assert IO.load_checkpoint(folder / "step-000004")["global_step"] == 4


def damage(folder, draw, change):
    """Change one file of the newest checkpoint, look for the newest good one, and put the file back."""
    newest = folder / "step-000003"
    file = draw.choice(sorted(newest.iterdir()))
    content = file.read_bytes()
    file.write_bytes(change(bytearray(content)))
    said = []
    found = newest_checkpoint(folder, said.append)
    assert found == folder / "step-000002", (file, found)
    assert len(said) == 1 and str(file) in said[0] and any(reason in said[0] for reason in REASONS), said
    with pytest.raises(CheckpointError):
        IO.load_checkpoint(newest)
    file.write_bytes(content)
    return file.name


def test_case_04_a_hundred_truncations_are_all_found_and_named(folder):
    draw = random.Random(4)
    files = [damage(folder, draw, lambda data: data[: draw.randrange(len(data))]) for _ in range(100)]
    assert len(files) == 100 and len(set(files)) == 3
    assert newest_checkpoint(folder, pytest.fail) == folder / "step-000003"


def test_case_05_four_hundred_flipped_bits_are_all_found_and_named(folder):
    draw = random.Random(5)

    def flip(data):
        bit = draw.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        return data

    files = [damage(folder, draw, flip) for _ in range(400)]
    assert len(files) == 400 and min(Counter(files).values()) > 80 and len(set(files)) == 3


def rewrite(folder, **changes):
    """Change the record of a checkpoint as another program would; None takes a key out."""
    file = folder / provenance.PROVENANCE
    record = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": 99}, "schema 99, expected 2; another program or another version"),
        ({"schema": None}, "schema None, expected 2; another program or another version"),
        ({"sha256": None}, "differs from its own checksum"),
        ({"stage": "sft"}, "differs from its own checksum"),
        ({"schema": 1, "stage": "sft"}, "written by stage 'sft', expected 'checkpoint'"),
    ],
)
def test_case_06_a_record_that_is_not_ours_is_refused_and_the_one_before_taken(folder, changes, says):
    rewrite(folder / "step-000003", **changes)
    said = []
    assert newest_checkpoint(folder, said.append) == folder / "step-000002"
    assert says in said[0] and "step-000003" in said[0]


def test_case_06_a_missing_record_is_named_and_one_of_the_schema_before_is_read(folder):
    rewrite(folder / "step-000003", schema=1, sha256=None)
    assert IO.load_checkpoint(folder / "step-000003")["global_step"] == 3
    (folder / "step-000003" / provenance.PROVENANCE).unlink()
    with pytest.raises(CheckpointError, match=r"step-000003: no provenance\.json"):
        IO.load_checkpoint(folder / "step-000003")


class FullDisk:
    """The n-th call of a save that needs space fails, within `with`."""

    CALLS = ("write", "fsync", "mkdir", "rename")
    CALLERS = ("rlhf_lightning.checkpoint", "pathlib", "tempfile")

    def __init__(self, number):
        self.left = number

    def __enter__(self):
        sys.setprofile(self._watch)
        return self

    def __exit__(self, *given):
        sys.setprofile(None)

    def _watch(self, frame, event, called):
        caller = frame.f_globals.get("__name__", "")
        made = (caller, called.__name__) != ("pathlib", "mkdir") if event == "c_call" else False  # is there already
        if made and called.__name__ in self.CALLS and caller.startswith(self.CALLERS):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_case_07_a_disk_that_fills_up_at_any_write_costs_nothing_but_the_new_checkpoint(folder):
    before, refused = contents(folder), 0
    while True:
        try:
            with FullDisk(refused):
                IO.save_checkpoint(state(4), folder / "step-000004")
        except DiskError as error:
            refused += 1
            says = r"step-000004: cannot write here \(.*No space left.*\); 2,5\d\d bytes are needed and [\d,]+ free;"
            assert re.match(f"{folder}/{says}", str(error)) and error.exit_code == 5
        else:
            break
        if (folder / "step-000004").exists():  # it was complete, and only the flush of its name failed
            assert newest_checkpoint(folder, pytest.fail) == folder / "step-000004"
            places.remove_folder(folder / "step-000004")
        assert contents(folder) == before and len(list(folder.iterdir())) == 3
    assert refused >= 10


def test_case_07_a_checkpoint_that_cannot_fit_is_refused_before_anything_is_written(folder, monkeypatch):
    monkeypatch.setattr(handover.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        DiskError, match=r"No space left on device\); 2,5\d\d bytes are needed and 1,000 free; what was"
    ):
        IO.save_checkpoint(state(3), folder / "step-000003")
    assert newest_checkpoint(folder, pytest.fail) == folder / "step-000003"


class FullAt(DurableCheckpointIO):
    """Has no space for some steps."""

    def __init__(self, *steps):
        super().__init__()
        self.steps = steps

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if checkpoint["global_step"] in self.steps:
            raise DiskError("disk full")
        super().save_checkpoint(checkpoint, path, storage_options)


def sft(folder, io=None, cls=SFTModule, **options):
    """Four steps of SFT with a checkpoint after each."""
    _, data = jobs.sft(jobs.write(folder), 4)
    module = cls(tiny.policy(), tiny.tokenizer(), jobs.ADAM)
    callbacks = [DurableCheckpoint(folder / "checkpoints", every_n_steps=1, keep=9, **options)] if io else []
    fit = phases.trainer(data.accumulate_for(1), 2, callbacks, checkpointing=bool(io), plugins=[io] if io else [])
    fit.fit(module, datamodule=data)
    return module, [path.name for path in checkpoints(folder / "checkpoints")]


def test_case_07_training_goes_on_without_a_checkpoint_if_it_is_told_to(tmp_path):
    untouched, _ = sft(tmp_path)
    with pytest.warns(UserWarning, match="no checkpoint at step 2, training goes on: disk full"):
        module, saved = sft(tmp_path, FullAt(2), on_error="warn")
    assert saved == ["step-000003", "step-000001"]
    assert torch.equal(phases.flat(module.policy), phases.flat(untouched.policy))
    with pytest.raises(DiskError, match="disk full"):
        sft(tmp_path, FullAt(2))
    with pytest.raises(ConfigError, match=r"checkpoint\.on_error=ignore: choose raise or warn"):
        DurableCheckpoint(tmp_path, on_error="ignore")


@pytest.mark.parametrize("place", ["/proc/nowhere", "FILE/run"])
def test_case_08_a_place_that_cannot_be_written_to_ends_the_command_before_it_starts(tmp_path, place):
    (tmp_path / "file").touch()
    command = [sys.executable, "train.py", f"run_dir={place.replace('FILE', str(tmp_path / 'file'))}", "stages=[sft]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5 and done.stdout == ""
    assert re.match(r"DiskError: cannot write the run's folder \(.*\); choose another run_dir", done.stderr)


def run_folder(path, resume="none", output=None, **config):
    given = {"run_dir": str(path), "resume": resume, "stages": ["sft"], "sft": {"output": output, "lr": 1}, **config}
    return RunFolder(given)


@pytest.mark.parametrize("denied", ["run", "run/checkpoints", "elsewhere"])
def test_case_08_every_folder_that_the_run_will_write_to_is_tried_before_training(tmp_path, monkeypatch, denied):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    real = tempfile.NamedTemporaryFile

    def read_only(dir, **options):
        if Path(dir) == tmp_path / denied:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))
        return real(dir=dir, **options)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", read_only)
    says = f"{tmp_path / denied}: cannot write here .*Read-only file system.*choose another run_dir or free the disk"
    with (
        pytest.raises(DiskError, match=says) as refused,
        run_folder(tmp_path / "run", output=tmp_path / "elsewhere" / "sft").lock(),
    ):
        pytest.fail("training began")
    assert refused.value.exit_code == 5


def test_case_09_no_file_says_which_checkpoint_is_the_newest_so_none_can_be_missing_or_wrong(folder):
    (folder / "LATEST").symlink_to(folder / "gone")
    (folder / "step-000009").touch()  # a file
    (folder / "step-000008").mkdir()
    (folder / ".tmp-step-000007-abcdefgh").mkdir()
    said = []
    assert newest_checkpoint(folder, said.append) == folder / "step-000003"
    assert len(said) == 2 and all("no provenance.json" in text for text in said)
    places.remove_folder(folder / "step-000003")
    assert newest_checkpoint(folder, said.append) == folder / "step-000002"
    places.sweep(folder)
    assert not list(folder.glob(".tmp-*"))


def test_case_10_resuming_without_a_checkpoint_is_an_error_and_auto_says_that_it_starts_new(tmp_path, caplog):
    with pytest.raises(
        CheckpointError, match=r"resume=.*nothing: not a checkpoint folder of this library; give run_dir"
    ):
        run_folder(tmp_path, resume=str(tmp_path / "nothing"))
    with caplog.at_level("INFO", "rlhf_lightning"):
        assert run_folder(tmp_path, resume="auto").checkpoint("sft") is None
    assert "stage sft: no checkpoint, starting new" in caplog.text


def test_case_10_a_new_run_does_not_begin_on_the_checkpoints_of_another(tmp_path):
    with run_folder(tmp_path).lock():
        IO.save_checkpoint(state(7), tmp_path / "checkpoints" / "sft" / "step-000007")
    says = r"run_dir=.*: holds an earlier run \(checkpoints of sft\)\. Choose one of\n  resume=auto"
    with pytest.raises(ConfigError, match=says), run_folder(tmp_path).lock():
        pytest.fail("training began")


class Recorded(SFTModule):
    """Records what checkpoints cannot hold as it is."""

    record = OmegaConf.create({"lr": 0.1, "path": "${lr}", "list": [1, 2]})

    def __init__(self, policy, tokenizer, optimizer):
        super().__init__(policy, tokenizer, optimizer)
        given = {"node": self.record, "path": Path("a"), "number": np.float32(0.5), "array": np.arange(3)}
        self.save_hyperparameters(given)


class Whole(SFTModule):
    """Its record as a whole is a node of OmegaConf, and Lightning adds the class of it."""

    def __init__(self, policy, tokenizer, optimizer):
        super().__init__(policy, tokenizer, optimizer)
        self.save_hyperparameters(Recorded.record)


class Careless(SFTModule):
    """Puts a path into its state."""

    def progress(self):
        return {"best": Path("a")}


class Code(SFTModule):
    """Records a function."""

    def __init__(self, policy, tokenizer, optimizer):
        super().__init__(policy, tokenizer, optimizer)
        self.save_hyperparameters({"optimizer": {"make": jobs.sft}})


def test_case_13_recorded_hyperparameters_are_saved_as_plain_data(tmp_path):
    node = {"lr": 0.1, "path": 0.1, "list": [1, 2]}
    for cls, record in ((Recorded, {"node": node, "path": "a", "number": 0.5, "array": [0, 1, 2]}), (Whole, node)):
        (tmp_path / cls.__name__).mkdir()
        _, saved = sft(tmp_path / cls.__name__, DurableCheckpointIO(), cls)
        loaded = IO.load_checkpoint(tmp_path / cls.__name__ / "checkpoints" / saved[0])
        assert loaded["hyper_parameters"] == record and "hparams_type" not in loaded


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (Careless, r"rlhf\.best is a pathlib\.\w+Path"),
        (Code, r"hyper_parameters\.optimizer\.make is a builtins\.function"),
    ],
)
def test_case_13_what_cannot_be_saved_is_refused_before_the_first_step_with_its_place(tmp_path, cls, says):
    class Watch(cls):
        def training_step(self, *given):
            pytest.fail("training began")

    with pytest.raises(CheckpointError, match=f"{says}; a checkpoint holds tensors, numbers, text"):
        sft(tmp_path, DurableCheckpointIO(), Watch)


def test_case_14_another_config_is_refused_with_the_list_of_what_changed(tmp_path):
    run_folder(tmp_path, model={f"key{i}": i for i in range(7)}).begin("sft")
    (tmp_path / "history").mkdir()
    (tmp_path / "history" / "sft.csv").write_text("step\n1\n")
    other = {"key0": 9, "key1": "x", "key2": None, "key3": [1], "key4": 0, "key5": 0, "key6": 0}
    with pytest.raises(ConfigError) as refused:
        run_folder(tmp_path, resume="auto", model=other)
    assert 'another config (model.key0: 0 -> 9; model.key1: 1 -> "x"; model.key2: 2 -> null; ' in str(refused.value)
    assert "model.key3: 3 -> [1]; model.key4: 4 -> 0; and 2 more)" in str(refused.value)
    same = {**{f"key{i}": i for i in range(7)}, "path": "elsewhere"}  # `sft.policy` is what is read
    run_folder(tmp_path, resume="auto", model=same, threads=3, kl=1, ppo={"lr": 1}, stages=["sft", "ppo"])


@pytest.mark.parametrize(
    ("old", "new"), [("1", "/data/1"), ("run: #1", "it's \u00e4: {x}"), ("lr", "."), ("/a/", "/b")]
)
def test_case_14_a_folder_that_has_moved_is_no_other_config(tmp_path, old, new):
    rest = {"lr": 0.1, "data": "runs/lr", "list": [1, "1e-3"]}

    def config(folder):
        return {"run_dir": folder, "sft": {"output": f"{folder.rstrip('/')}/sft"}, **rest}

    assert changes.changes(config(old), config(new)) == []


@pytest.mark.parametrize("files", [None, [], "x"])
def test_case_06_a_record_that_lists_no_files_is_an_error_of_ours(tmp_path, files):
    (tmp_path / "provenance.json").write_text(json.dumps({"schema": 1, "stage": "checkpoint", "files": files}))
    with pytest.raises(CheckpointError, match="lists no files"):
        provenance.verify_folder(tmp_path)


def test_case_14_a_checkpoint_given_by_its_path_names_what_changed(tmp_path):
    IO.save_checkpoint(state(1), tmp_path / "old" / "checkpoints" / "sft" / "step-000001")
    old = {"run_dir": str(tmp_path / "old"), "sft": {"output": f"{tmp_path / 'old'}/sft", "lr": 2}}
    (tmp_path / "old" / "config.yaml").write_text(OmegaConf.to_yaml(old))
    path = tmp_path / "old" / "checkpoints" / "sft" / "step-000001"
    with pytest.warns(UserWarning, match=r"that run was made with another config \(sft\.lr: 2 -> 1\)"):
        run_folder(tmp_path / "new", resume=str(path), output=f"{tmp_path / 'new'}/sft")


def test_case_14_a_checkpoint_of_a_model_of_another_size_is_refused_by_its_weights(tmp_path):
    _, saved = sft(tmp_path, DurableCheckpointIO())
    module, data = SFTModule(tiny.policy(layers=1), tiny.tokenizer(), jobs.ADAM), jobs.sft(tmp_path, 4)[1]
    fit = phases.trainer(data.accumulate_for(1), 2, plugins=[DurableCheckpointIO()])
    says = (
        r"of another model: policy\.model\.layers\.1\.\S+ is \[32\] in the checkpoint and not there in .*, and 8 more"
    )
    with pytest.raises(CheckpointError, match=says):
        fit.fit(module, datamodule=data, ckpt_path=tmp_path / "checkpoints" / saved[0])


def test_a_damaged_newest_checkpoint_does_not_push_out_those_of_the_run_that_goes_on(tmp_path):
    for step in (10, 20, 30):
        IO.save_checkpoint(state(step), tmp_path / f"step-{step:06d}")
    saver = DurableCheckpoint(tmp_path)
    strategy = SimpleNamespace(remove_checkpoint=IO.remove_checkpoint, save_checkpoint=IO.save_checkpoint)
    trainer = SimpleNamespace(
        global_step=23, is_global_zero=True, strategy=strategy,
        lightning_module=SimpleNamespace(automatic_optimization=True),
        _checkpoint_connector=SimpleNamespace(dump_checkpoint=lambda: state(23)),
    )  # fmt: skip
    saver.save(trainer)  # of a run that went on from 20, since 30 was damaged
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000023", "step-000020"]


def test_folders_that_cannot_trade_places_step_aside_and_are_brought_back(folder, monkeypatch):
    monkeypatch.setattr(handover, "exchange", lambda first, second: False)
    IO.save_checkpoint(state(3), folder / "step-000003")
    assert len(list(folder.iterdir())) == 3
    (folder / "step-000003").rename(folder / ".tmp-step-000003-old")  # killed between two renames
    places.sweep(folder)
    assert newest_checkpoint(folder, pytest.fail) == folder / "step-000003"


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
def test_two_folders_trade_places(folder):
    first, second = read_provenance(folder / "step-000001"), read_provenance(folder / "step-000002")
    assert exchange(folder / "step-000001", folder / "step-000002")
    assert [read_provenance(folder / f"step-00000{n}") for n in (1, 2)] == [second, first]
    with pytest.raises(FileNotFoundError):
        exchange(folder / "step-000001", folder / "gone")
