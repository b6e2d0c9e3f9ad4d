"""Where metrics go: one logger, several, or none."""

import csv
import re
import sys
from types import ModuleType

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, mlflow

from rlhf_lightning.config.compose import compose, config_text
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.stages import Run
from tests.support.logging_modules import Refinement, loader

BASE = ["stage=ppo", "trainer=cpu", "checkpoint=null"]


def loggers(tmp_path, *words):
    config = compose([*BASE, f"run_dir={tmp_path}/run", *words])
    config["callbacks"] = {}
    return Run(config).trainer("ppo", max_epochs=1, limit_val_batches=0, enable_progress_bar=False)


def test_by_default_there_is_one_tensorboard_folder_per_stage(tmp_path):
    (logger,) = loggers(tmp_path).loggers
    assert logger.log_dir == f"{tmp_path}/run/tensorboard/ppo/"


def test_no_logger_is_no_logger(tmp_path):
    assert loggers(tmp_path, "logger=none").loggers == []


def test_several_loggers_all_see_what_is_logged(tmp_path):
    trainer = loggers(tmp_path, "logger=many")
    assert [type(one) for one in trainer.loggers] == [TensorBoardLogger, CSVLogger]
    trainer.fit(Refinement([0.5, 0.25], [1, 1]), loader(2))
    with open(f"{tmp_path}/run/csv/ppo/version_0/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["objective/scores"]) for row in rows] == [0.5, 0.25]
    assert list((tmp_path / "run" / "tensorboard" / "ppo").glob("events.*"))


def test_a_second_try_keeps_the_rows_of_the_first(tmp_path):
    for _ in range(2):
        loggers(tmp_path, "logger=csv").fit(Refinement([0.5], [1]), loader(1))
    assert sorted(p.name for p in (tmp_path / "run" / "csv" / "ppo").iterdir()) == ["version_0", "version_1"]
    assert (tmp_path / "run" / "csv" / "ppo" / "version_0" / "metrics.csv").is_file()


def test_a_third_one_has_a_name_and_a_null_one_is_left_out(tmp_path):
    more = f"+logger.mine={{_target_: {__name__}.Bare}}"
    trainer = loggers(tmp_path, "logger=many", more, "logger.csv=null", f"trusted_targets=[{__name__}]")
    assert [type(one) for one in trainer.loggers] == [TensorBoardLogger, Bare]


class Bare(CSVLogger):
    """Takes neither a name nor a version."""

    def __init__(self) -> None:
        super().__init__("unused")


def test_mlflow_is_called_by_the_name_of_the_stage(tmp_path, monkeypatch):
    package = ModuleType("mlflow")
    package.tracking = ModuleType("mlflow.tracking")
    package.tracking.MlflowClient = lambda *a, **b: None
    monkeypatch.setattr(mlflow, "_MLFLOW_AVAILABLE", True)
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", package.tracking)
    target = "lightning.pytorch.loggers.MLFlowLogger"
    (logger,) = loggers(tmp_path, f"logger._target_={target}", "+logger.experiment_name=mine").loggers
    assert (logger._run_name, logger._experiment_name) == ("ppo", "mine")


def test_a_name_in_the_config_is_kept(tmp_path):
    (logger,) = loggers(tmp_path, "logger=csv", "+logger.name=mine", "+logger.version=v").loggers
    assert logger.log_dir == f"{tmp_path}/run/csv/mine/v"


@pytest.mark.skipif(bool(mlflow._MLFLOW_AVAILABLE), reason="mlflow is installed")
def test_a_logger_whose_package_is_missing_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"logger\.ml: .*mlflow"):
        loggers(tmp_path, "logger=many", "+logger.ml._target_=lightning.pytorch.loggers.MLFlowLogger")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["+logger.csv._target_=lightning.pytorch.loggers.CSVLogger"], "logger.csv: .* begin with logger=many"),
        (["logger=many", "+logger.x.save_dir=y"], "logger.x: is no logger, since it has no _target_"),
        (["logger=csv", "+logger.nam=x"], "logger.nam: .*CSVLogger takes no nam.* mean name"),
    ],
)
def test_what_is_no_logger_is_known_before_anything_runs(words, says):
    with pytest.raises(ConfigError, match=re.compile(says, re.DOTALL)):
        compose([*BASE, *words])


def test_a_secret_of_one_of_several_loggers_is_blanked():
    target = "lightning.pytorch.loggers.CometLogger"
    words = ["logger=many", f"+logger.c={{_target_: {target}, api_key: s3cr3t-one, prefix: p}}"]
    config = compose([*BASE, *words])
    assert config["logger"]["c"]["api_key"] == "s3cr3t-one"
    assert "s3cr3t-one" not in config_text(config)


@pytest.mark.parametrize(
    "node", ["_target_: LOGGERS.WandbLogger", "_target_: LOGGERS.CSVLogger, save_dir: /tmp/elsewhere"]
)
def test_a_file_may_not_do_with_one_of_several_loggers_what_it_may_not_with_one(tmp_path, node):
    (tmp_path / "experiment").mkdir()
    text = f"# @package _global_\ndefaults: [override /logger: many]\nlogger: {{c: {{{node}}}}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text.replace("LOGGERS", "lightning.pytorch.loggers"))
    with pytest.raises(ConfigError, match=r"logger\.c\.(_target_|save_dir)=.* set by a config file"):
        compose([*BASE, f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])
