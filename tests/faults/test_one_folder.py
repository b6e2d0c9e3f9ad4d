"""Cases 14, 56 and 57: what several runs leave in one folder, and what must not be refused there."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.checkpoint.io import DurableCheckpointIO
from rlhf_lightning.checkpoint.provenance import read_sealed, sealed
from rlhf_lightning.config.compose import compose
from rlhf_lightning.config.rights import OUTPUT_ROOT
from rlhf_lightning.errors import CheckpointError, ConfigError, DataError
from rlhf_lightning.loggers.files import lasting
from rlhf_lightning.stages.pipeline import run
from rlhf_lightning.stages.places import RECORD
from tests.faults.test_places import config
from tests.gates.gate_sources import ROOT
from tests.support import trees


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with rows that people have ranked, and the config of the stage that reads them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ranks.jsonl").write_text(json.dumps(trees.ROW) + "\n")
    (tmp_path / "base").mkdir()
    return trees.base_config(tmp_path / "ranks.jsonl")


@pytest.mark.parametrize(
    "name", ["history/mine.csv", "figures/mine.png", "tensorboard/hparams.yaml", "tensorboard/rank/state.json",
             "bad_batches/config.yaml", "lightning_logs/state.json", "checkpoints/rank/report.md"],
)  # fmt: skip
def test_case_56_what_the_user_put_into_a_run_is_kept_when_the_run_is_replaced(place, tmp_path, name):
    run(config(place))
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    run(config(place, overwrite=True))
    folder = "run.replaced-1" if "/rank/" in name else "run"  # only what these stages have made is moved
    assert (tmp_path / folder / name).read_text() == "precious"
    assert len(trees.files(tmp_path / "run.replaced-1")) == ("/rank/" in name)


@pytest.mark.parametrize("moved", [0, 1, 2])
@pytest.mark.parametrize("then", [{"resume": "auto"}, {"overwrite": True}])
def test_case_56_a_run_that_was_being_moved_aside_is_put_back(place, tmp_path, monkeypatch, moved, then):
    run(config(place))
    for name in ("history/rank.csv", "tensorboard/rank/events.out.tfevents.1"):
        (tmp_path / "run" / name).parent.mkdir(parents=True)
        (tmp_path / "run" / name).write_text("step\n1\n")
    before = {path.name: path.read_bytes() for path in trees.files(tmp_path / "run") if path.suffix != ".lock"}
    rename, left = Path.rename, [moved]

    def killed(self, target):
        if "replaced" in str(target) and not left[0]:
            raise SystemError("killed")
        left[0] -= "replaced" in str(target)
        return rename(self, target)

    with monkeypatch.context() as patched, pytest.raises(SystemError):
        patched.setattr(Path, "rename", killed)
        run(config(place, overwrite=True))
    assert run(config(place, **then))["rank/prompts"] == 1
    there = {path.name for path in trees.files(tmp_path / "run")}
    assert there >= (set(before) if "resume" in then else {"rankings.jsonl", "run.json", "config.yaml"})
    assert not list(tmp_path.glob("run.replaced-*"))


def test_case_56_the_run_folder_may_be_the_working_folder(place, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    there = {"run_dir": ".", "output": "rankings"}
    for more in ({}, {"overwrite": True}, {"resume": "auto"}):
        assert run(config(place, **there, **more))["rank/prompts"] == 1
    assert not list(tmp_path.glob("work.*"))


@pytest.mark.parametrize("root", [".", "", "..", "../work"])
def test_case_56_a_task_is_not_made_in_place_of_the_working_folder(tmp_path, monkeypatch, root):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(CheckpointError, match="is or holds the working folder"):
        trees.task(root)


@pytest.mark.parametrize("age", [0, 60])
def test_case_56_an_empty_folder_of_the_user_stays_when_a_command_fails(tmp_path, age):
    there = time.time() - age
    (tmp_path / "mine").mkdir()
    os.utime(tmp_path / "mine", (there, there))
    for name in ("mine", "new"):
        words = ["stage=sft", f"run_dir={tmp_path / name}", "sft.max_epochs=-1"]
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *words], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == 2, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_case_56_stages_may_be_run_one_by_one_in_one_folder(place, tmp_path):
    run(config(place))
    other = {**config(place), "stages": ["rank"]}
    shutil.move(tmp_path / "run" / "rankings", tmp_path / "run" / "kept")  # as if another stage had made it
    (tmp_path / "run" / "kept" / "provenance.json").unlink()
    write_folder(tmp_path / "run" / "sft", lambda folder: (folder / "a").touch(), {"stage": "sft"})
    (tmp_path / "run" / "history").mkdir()
    (tmp_path / "run" / "history" / "sft.csv").write_text("step\n1\n")
    record = read_sealed(tmp_path / "run" / RECORD)
    (tmp_path / "run" / RECORD).write_text(sealed(record | {"outputs": ["rankings", "sft"]}))
    for more in ({"resume": "none"}, {"resume": "auto"}, {"overwrite": True}):
        shutil.rmtree(tmp_path / "run" / "rankings", ignore_errors=True)
        assert run({**other, **more, "seed": 7})["rank/prompts"] == 1
        assert (tmp_path / "run" / "sft" / "a").is_file() and (tmp_path / "run" / "history" / "sft.csv").is_file()
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run(other)


def test_case_56_a_stage_that_is_not_finished_keeps_its_config(place, tmp_path):
    run(config(place))
    shutil.rmtree(tmp_path / "run" / "rankings")
    saved = tmp_path / "run" / "checkpoints" / "rank" / "step-000001"
    DurableCheckpointIO().save_checkpoint({"global_step": 1, "state_dict": {}}, saved)
    with pytest.raises(ConfigError, match=r"holds an earlier run \(checkpoints of rank\)"):
        run(config(place))
    with pytest.raises(ConfigError, match=r"made with another config \(seed: 0 -> 7\)"):
        run(config(place, resume="auto") | {"seed": 7})


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_case_56_a_table_of_numbers_is_not_deleted_for_a_new_one(tmp_path):
    for number in range(3):
        logger = lasting(CSVLogger(str(tmp_path), name="sft", version=""))
        logger.log_metrics({"loss": number})
        logger.save()
        logger.finalize("success")
    tables = {path.name: path.read_text() for path in (tmp_path / "sft").glob("metrics.csv*")}
    assert sorted(tables) == ["metrics.csv", "metrics.csv.before-1", "metrics.csv.before-2"]
    assert [text.split()[-1].split(",")[0][0] for _, text in sorted(tables.items())] == ["2", "0", "1"]


def test_case_14_a_config_with_which_nothing_was_made_may_be_corrected(place, tmp_path):
    wrong = config(place, resume="auto")
    wrong["rank"]["human_ranks"] = "nowhere.jsonl"
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        run(wrong)
    assert (tmp_path / "run" / "config.yaml").exists() and (tmp_path / "run" / RECORD).exists()
    assert run(config(place, resume="auto"))["rank/prompts"] == 1


def test_case_14_a_folder_called_like_a_word_of_its_config_may_be_moved(place, tmp_path):
    run(config(place, run_dir="rank", output="rank/rankings"))
    shutil.move(tmp_path / "rank", tmp_path / "other")
    again = config(place, run_dir="other", output="other/rankings", resume="auto")
    assert run(again)["rank/prompts"] == 1
    with pytest.raises(ConfigError, match=r"made with another config \(seed: 0 -> 7\)"):
        run(again | {"seed": 7})


def test_case_57_the_folder_for_all_runs_may_be_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path(OUTPUT_ROOT).symlink_to(tmp_path / "scratch")
    composed = compose(["stage=sft"])
    assert composed["output_root"] == OUTPUT_ROOT and Path(composed["run_dir"]).is_relative_to(OUTPUT_ROOT)
    assert compose(["stage=sft", "run_dir=runs/mine"])["sft"]["output"] == "runs/mine/sft"
