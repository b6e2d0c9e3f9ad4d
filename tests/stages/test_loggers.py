"""Where metrics go: one logger, several, or none."""

import csv
import importlib
import re
import sys
from types import ModuleType
from typing import ClassVar

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, mlflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_lightning.config import loggers as config_loggers
from rlhf_lightning.config.compose import compose, config_text
from rlhf_lightning.config.loggers import check_imports, check_installed
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.stages import Run
from rlhf_lightning.stages.pipeline import run
from tests.support import small_pipeline
from tests.support.logging_modules import Refinement, loader

SCORING = [
    "judge=function", "judge.function=tests.support.phases.praise", "judge.isolate=false", "trusted_targets=[tests]",
]  # fmt: skip
BASE = ["stage=ppo", "trainer=cpu", "checkpoint=null"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Loggers without a folder write where the test is."""
    monkeypatch.chdir(tmp_path)


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
    (logger,) = loggers(tmp_path, "logger=mlflow", "logger.mlflow.experiment_name=mine").loggers
    assert (logger._run_name, logger._experiment_name) == ("ppo", "mine")


def test_a_name_in_the_config_is_kept(tmp_path):
    (logger,) = loggers(tmp_path, "logger=csv", "+logger.csv.name=mine", "+logger.csv.version=v").loggers
    assert logger.log_dir == f"{tmp_path}/run/csv/mine/v"


@pytest.mark.skipif(bool(mlflow._MLFLOW_AVAILABLE), reason="mlflow is installed")
def test_a_logger_whose_package_is_missing_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"logger\.ml: .*mlflow"):
        loggers(tmp_path, "logger=many", "+logger.ml._target_=lightning.pytorch.loggers.MLFlowLogger")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["logger=none", "+logger={_target_: a.B, csv: {_target_: a.C}}", "trusted_targets=[a]"],
            "logger.csv: .* begin with logger=many",
        ),
        (["logger=many", "+logger.x.save_dir=y"], "logger.x: is no logger, since it has no _target_"),
        (["logger=csv", "+logger.csv.nam=x"], "logger.csv.nam: .*CSVLogger takes no nam.* mean name"),
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


class Kept(Logger):
    """Takes tables and images as Lightning's W&B logger does, and tells of what it was given."""

    version = 0
    seen: ClassVar[dict] = {}

    def __init__(self, name: str, group: str) -> None:
        super().__init__()
        self.group = group
        self.mine = self.seen.setdefault(name, {"tables": [], "images": [], "ended": [], "numbers": {}})

    @property
    def name(self):
        return self.group

    def log_metrics(self, metrics, step=None):
        self.mine["numbers"] |= metrics

    def log_hyperparams(self, params) -> None:
        self.mine["config"] = params

    def log_table(self, key, columns, data, step):
        self.mine["tables"].append((key, step, [dict(zip(columns, row, strict=True)) for row in data]))

    def log_image(self, key, images, step):
        self.mine["images"].append(key)

    def finalize(self, status):
        self.mine["ended"].append((self.group, status))


def column(file, name):
    with open(file) as stream:
        return [row[name] for row in csv.DictReader(stream) if row[name]]


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
@pytest.mark.filterwarnings("ignore:predict returned None")
def test_config_curves_samples_figures_and_last_metrics_of_each_stage_are_in_each_logger(tmp_path, monkeypatch):
    monkeypatch.setattr(Kept, "seen", {})
    words = [word for word in small_pipeline.inputs(tmp_path) if word != "logger=none"]
    node = f"+logger.kept={{_target_: {__name__}.Kept}}"
    run(
        compose(
            [
                *words, "logger=many", node, "stages=[sft,ppo,evaluate]",
                f"run_dir={tmp_path}/run", "checkpoint=null", "sft.data.batch_size=4", "ppo.rollouts=2",
                "evaluate.data.max_prompt_length=32",
                f"data.prompts_validation={tmp_path}/prompts.jsonl", *SCORING, "ppo.monitor=true",
            ]
        )
    )  # fmt: skip
    sft, ppo, judged = (Kept.seen[stage] for stage in ("sft", "ppo", "evaluate"))
    assert sft["config"]["sft"]["data"]["batch_size"] == 4 and "ppo" not in sft["config"]
    prompts = [[row["prompt"] for row in rows] for key, _, rows in sft["tables"] + ppo["tables"] if key == "samples"]
    assert prompts[0] == prompts[1] and prompts[2] == prompts[3]
    assert {key for key, *_ in ppo["tables"]} == {"samples", "samples_by_score"}
    assert {"judge", "response"} <= set(ppo["tables"][0][2][0])
    assert "report/sft_loss" in judged["images"]
    end = (f"{tmp_path.name}/run", "success")
    assert [one["ended"] for one in Kept.seen.values()] == [[end] * 2, [end] * 2, [end]]
    assert {"objective/kl", "best/score"} <= set(ppo["numbers"]) and "evaluate/ppo/praise" in judged["numbers"]
    files = {stage: tmp_path / "run" / "csv" / stage / "version_0" for stage in Kept.seen}
    assert len(column(files["ppo"] / "metrics.csv", "objective/scores")) == 2
    assert column(files["ppo"] / "metrics.csv", "best/score")
    assert column(files["evaluate"] / "metrics.csv", "evaluate/ppo/praise")
    assert column(files["ppo"] / "samples.csv", "step") == ["0"] * 8 + ["1"] * 8
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "ppo"), {"tensors": 0}).Reload()
    tags = events.Tags()
    assert {"config/text_summary", "samples/text_summary", "_hparams_/session_start_info"} <= {
        *tags["tensors"], *events.summary_metadata
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "kinds"),
    [
        ("logger=[csv,tensorboard]", {"CSVLogger", "TensorBoardLogger"}),
        ("logger=false", set()),
        (f"logger={{_target_: {__name__}.Bare}}", {"Bare"}),
    ],
)
def test_loggers_are_chosen_by_a_list_by_a_class_or_not_at_all(tmp_path, word, kinds):
    chosen = loggers(tmp_path, word, f"trusted_targets=[{__name__}]").loggers
    assert {type(one).__name__ for one in chosen} == kinds


def test_a_package_that_is_not_there_is_one_sentence_before_torch(monkeypatch):
    monkeypatch.setattr(config_loggers, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"^logger.wandb: wandb is not installed; pip install 'rlhf_lightning\[wandb\]'$"
    ):
        check_installed(compose([*BASE, "logger=wandb"])["logger"])


def test_a_package_that_is_half_installed_is_one_sentence(tmp_path, monkeypatch):
    package = tmp_path / "wandb"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    group = compose([*BASE, "logger=wandb"])["logger"]
    with pytest.raises(ConfigError, match="wandb is not installed"):  # a folder of that name is none
        check_installed(group)
    (package / "__init__.py").write_text("import wandb_core_that_is_not_there")
    importlib.invalidate_caches()
    check_installed(group)
    with pytest.raises(
        ConfigError, match=r"^logger.wandb: wandb is installed, but .*\(ModuleNotFoundError: .*\); pip "
    ):
        check_imports(group)


def test_a_logger_that_cannot_begin_says_which_one_it_is(tmp_path):
    node = f"+logger.shy={{_target_: {__name__}.Shy}}"
    with pytest.raises(ConfigError, match=r"logger.shy: cannot begin \(RuntimeError: no key\)"):
        loggers(tmp_path, "logger=none", node, f"trusted_targets=[{__name__}]")


class Shy(Bare):
    """Cannot begin."""

    @property
    def experiment(self):
        raise RuntimeError("no key")
