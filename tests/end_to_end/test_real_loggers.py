"""What the packages behind the loggers write, where they are installed: curves, config, and two at once."""

import json
import sqlite3

import pytest
import torch

from rlhf_lightning.config.compose import compose
from rlhf_lightning.stages.pipeline import run
from tests.support import small_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # those packages warn of themselves


def trained(tmp_path, monkeypatch, *words):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    given = [word for word in small_pipeline.inputs(tmp_path) if word != "logger=none"]
    return run(compose([*given, "stages=[sft]", "sft.data.batch_size=2", f"run_dir={tmp_path}/run", *words]))


def test_mlflow_and_csv_hold_the_same_curve(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    trained(tmp_path, monkeypatch, "logger=[mlflow,csv]")
    with sqlite3.connect(tmp_path / "run" / "mlflow" / "mlflow.db") as base:
        curve = base.execute("select step, value from metrics where key = 'train/loss' order by step").fetchall()
        config = dict(base.execute("select key, value from params").fetchall())
    assert len(curve) >= 2 and config


def test_weights_and_biases_offline_holds_curve_and_config(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    trained(tmp_path, monkeypatch, "logger=wandb", "logger.wandb.offline=true")
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert next(folder.glob("*.wandb")).stat().st_size > 0


def test_trackio_holds_the_curve(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    trained(tmp_path, monkeypatch, "logger=trackio")
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as base:
        rows = [json.loads(text) for (text,) in base.execute("select metrics from metrics").fetchall()]
    assert sum("train/loss" in row for row in rows) >= 2
