"""Several machines, all of them this one: torchrun, and the batch script of `rlhf-lightning slurm` (15, 52)."""

import shutil
import subprocess
import sys

import pytest

from rlhf_lightning.checkpoint.io import checkpoints
from rlhf_lightning.checkpoint.provenance import sha256
from tests.support import cluster, small_run

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
NODES = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.num_nodes=2", "trainer.devices=1"]
SAVED = ["checkpoint.every_n_steps=1", "checkpoint.every_n_minutes=null"]


def model(run_dir):
    return sha256(run_dir / "ppo" / "model.safetensors")


def test_case_52_and_15_a_job_that_is_told_and_one_that_loses_a_rank_go_on_to_the_bits_of_an_undisturbed_run(
    tmp_path, monkeypatch, caplog
):
    (tmp_path / "calls").mkdir()
    (tmp_path / "data").mkdir()
    words, run_dir, log = [*small_run.prepare(tmp_path / "data"), *SAVED], tmp_path / "run", tmp_path / "log"
    environment = {"CALLS": str(tmp_path / "calls"), "WAIT_SECONDS": "0.5"}
    slurm = cluster.Cluster(tmp_path, run_dir / "checkpoints" / "ppo", **environment)
    asked = [*words, *NODES, small_run.misbehave("kill", rank=1, step=3), f"run_dir={run_dir}"]
    command = [sys.executable, str(small_run.ROOT / "train.py"), "slurm", *asked]
    script = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    with slurm.start(script) as job:  # the time is nearly over, and one rank hears of it
        cluster.wait_until(lambda: "rollout 1/4" in "\n".join(slurm.told("0.log")))
        slurm.time_is_nearly_over(script, tasks=[1])
        assert job.wait(180) != 0
    saved = checkpoints(run_dir / "checkpoints" / "ppo")[0]
    assert slurm.told("codes") in (["138 138"], ["138 -15"]), slurm.told("0.log")  # the second may have been ended
    [asked_for] = slurm.told("scontrol")
    assert asked_for.startswith(f"requeue {cluster.JOB} ") and asked_for.endswith(saved.name)
    assert slurm.told("0.log")[-1].endswith(f"job {cluster.JOB} is put back into the queue")
    shutil.copytree(run_dir, tmp_path / "fewer")

    with slurm.start(script) as job:  # a rank is killed
        assert job.wait(180) != 0
    assert slurm.told("codes")[-1].split()[1] == "-9" and slurm.told("scontrol") == [asked_for]
    assert not (run_dir / "ppo").exists()

    here = [*words, *small_run.TWO_RANKS, "resume=auto", f"run_dir={run_dir}"]  # and the rest on one machine
    assert cluster.torchrun(1, 2, here, log, **environment) == [0], log.read_text()
    alone = [*words, *NODES, f"run_dir={tmp_path / 'whole'}"]
    assert cluster.torchrun(2, 1, alone, log, **environment) == [0, 0], log.read_text()
    assert model(run_dir) == model(tmp_path / "whole")

    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    with caplog.at_level("WARNING", "rlhf_lightning"):
        small_run.go(words, tmp_path / "fewer", "resume=auto")
    assert "written by 2 processes and resumed by 1: the same rows in the same order, and new random" in caplog.text
