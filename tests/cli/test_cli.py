import csv
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
from omegaconf import OmegaConf

from rlhf_lightning.cli.commands import COMMANDS
from rlhf_lightning.config.compose import compose
from rlhf_lightning.config.hydra_loader import check_hydra
from rlhf_lightning.config.locations import CONF_DIR, help_text
from rlhf_lightning.config.sweeps import check_objective, common_failure, keep, objective_of, write_table
from rlhf_lightning.errors import ConfigError

# A small tree in place of ours, so that these tests hold whatever the stages look like.
OPTIONS = {
    "train": """
defaults:
  - base
  - data: files
  - stage: pipeline
  - experiment: null
  - _self_
  - override hydra/help: rlhf_lightning
  - override hydra/job_logging: rlhf_lightning
""",
    "data/files": "train: ???",
    "kl/fixed": "_target_: rlhf_lightning.optim.kl_controllers.FixedKL\ncoef: 0.1",
    "kl/adaptive": "_target_: rlhf_lightning.optim.kl_controllers.AdaptiveKL",
    "stage/ppo": "# @package _global_\ndefaults: [/kl: fixed]\nstage_name: ppo\nmodule: {clip_range: 0.2}",
    "stage/pipeline": "# @package _global_\ndefaults: [/stage@ppo: inner]\nstage_name: pipeline",
    "stage/inner": "module: {clip_range: 0.2}",
    "experiment/hostile": "# @package _global_\nx: {_target_: os.system, command: touch MARKER}",
    "experiment/trusting": "# @package _global_\ntrusted_targets: [os]",
}
DRIVER = """
import os, sys, types
from pathlib import Path
import rlhf_lightning.config.locations as locations
locations.CONF_DIR = Path("conf").resolve()
from rlhf_lightning import errors
from rlhf_lightning.cli import launch, main as cli, rank
def run(config):
    os.write(1, f"RUN {config['run_dir']} {config['seed']}\\n".encode())  # ranks write at once
    if config["seed"] == 2: raise errors.DataError("rows.jsonl:3: prompt: is empty")
    if config["seed"] == 3: raise RuntimeError("a bug")
    if config["seed"] == 4: raise KeyboardInterrupt
    return {"evaluate/gold": config["seed"] / 2, "other": 7.0}
pipeline = types.ModuleType("rlhf_lightning.stages.pipeline")
pipeline.run = run
sys.modules["rlhf_lightning.stages.pipeline"] = pipeline
if "HIDES" in os.environ:  # as Optuna's sweeper does
    from contextlib import suppress
    from hydra._internal.hydra import Hydra
    multirun = Hydra.multirun
    def hide(*given, **named):
        with suppress(Exception):
            multirun(*given, **named)
        raise ValueError("No trials are completed yet.")
    Hydra.multirun = hide
if launch.HANDOVER_VARIABLE in os.environ:
    launch.serve(rank.train)
launch.RANK_PROGRAM = [__file__]
cli.main()
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    for name, text in OPTIONS.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copytree(CONF_DIR / "hydra", folder / "conf" / "hydra")
    shutil.copy(CONF_DIR / "base.yaml", folder / "conf")
    (folder / "driver.py").write_text(DRIVER)

    def call(*arguments, **environment):
        env = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
        env |= {"PYTHONPATH": str(CONF_DIR.parent), **environment}
        command = [sys.executable, "driver.py", *arguments]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)

    call.folder = folder
    return call


def test_a_run_gets_a_folder_named_after_its_stage(app):
    done = app("stage=ppo", "data.train=x")
    assert done.returncode == 0, done.stderr
    opening, told = done.stdout.splitlines()
    run_dir = told.split()[1]
    assert opening.startswith("rlhf-lightning ") and opening.endswith(f"seed 0 | {run_dir}")
    assert run_dir.startswith(str(app.folder / "runs" / "ppo"))
    assert os.path.isdir(run_dir)
    assert not os.path.exists(app.folder / "outputs")


def test_the_run_folder_can_be_named(app):
    done = app("stage=ppo", "data.train=x", "run_dir=mine")
    assert done.stdout.splitlines()[1].split()[:2] == ["RUN", str(app.folder / "mine")]


def test_all_ranks_get_one_config_and_one_folder(app):
    done = app("stage=ppo", "data.train=x", "+trainer.devices=2")
    first, second = (line for line in done.stdout.splitlines() if line.startswith("RUN"))
    assert done.returncode == 0, done.stderr
    assert first == second


def test_each_job_of_a_sweep_has_its_own_folder(app):
    done = app("-m", "stage=ppo", "data.train=x", "seed=0,1")
    runs = [line.split() for line in done.stdout.splitlines() if line.startswith("RUN")]
    assert done.returncode == 0, done.stderr
    assert [run[2] for run in runs] == ["0", "1"]
    assert len({run[1] for run in runs}) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stage=ppo", "data.train=x", "module.clip_rnage=1"], "Did you mean module.clip_range?"),
        (["data.train=x", "module.clip_range=1"], "Did you mean ppo.module.clip_range?"),
        (["stage=ppo", "data.train=x", "kl=adaptve"], "Did you mean adaptive?\nOptions of kl: adaptive, fixed"),
        (["stage=poo"], "Did you mean ppo?"),
        (["stag=ppo"], "Did you mean stage?"),
        (["stage=ppo", "seed"], "missing EQUAL"),
        (["stage=ppo"], "data.train has no default"),
        (["stage=ppo", "data.train=${nowhere}"], "nowhere"),
        (["stage=ppo", "data.train=x", "experiment=hostile"], "os.system is not on the list"),
        (["stage=ppo", "data.train=x", "experiment=trusting"], "command line only"),
        (["prepare", "gpt5"], "prepare smollm2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_ends_with_code_2_and_says_what_was_meant(app, arguments, says):
    done = app(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 6
    assert not (app.folder / "MARKER").exists()


def test_wrong_commands_leave_no_empty_run_folders(app):
    app("stage=ppo", "output_root=empty")
    assert not list(app.folder.glob("empty/*/*"))


def test_case_54_the_ranks_of_each_job_of_a_sweep_share_its_config_and_folder(app):
    done = app("-m", "stage=ppo", "data.train=x", "seed=0,1", "+trainer.devices=2")
    runs = [tuple(line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("RUN")]
    assert done.returncode == 0, done.stderr
    assert [seed for _, seed in runs] == ["0", "0", "1", "1"]
    assert len(set(runs)) == 2


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_failed_job_gives_the_command_its_code(app, sweep, devices):
    done = app(*sweep, "stage=ppo", "data.train=x", "seed=2", f"+trainer.devices={devices}")
    assert done.returncode == 3
    rank = "" if devices == 1 else r"rank [01]: "
    assert re.fullmatch(f"{rank}DataError: rows.jsonl:3: prompt: is empty", done.stderr.splitlines()[-1])


def test_a_sweep_with_one_failed_job_fails_after_the_others_have_run_and_ends_with_a_table(app):
    words = ["stage=ppo", "data.train=x", "seed=0,2,1", "objective=evaluate/gold", "hydra.sweep.dir=table"]
    done = app("-m", *words)
    assert done.returncode == 3
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith("RUN")] == ["0", "2", "1"]
    with open(app.folder / "table" / "sweep.csv") as file:
        jobs = list(csv.DictReader(file))
    assert [(job["seed"], job["objective"], job["state"]) for job in jobs] == [
        ("0", "0.0", "finished"), ("2", "", "failed"), ("1", "0.5", "finished")
    ]  # fmt: skip
    assert jobs[1]["error"] == "DataError: rows.jsonl:3: prompt: is empty"
    assert jobs[2]["other"] == "7.0" and jobs[2]["folder"].endswith("table/2")
    head, *lines = done.stdout.splitlines()[-5:]
    assert head.split() == ["job", "seed", "objective", "state", "folder"]
    assert lines[0].split()[:4] == ["0", "0", "0", "finished"] and lines[-1].split() == ["sweep", "table/sweep.csv"]


def records(folder, *outcomes):
    for number, outcome in enumerate(outcomes):
        keep(folder, number, [f"seed={number}", "kl.target=3"], f"jobs/{number}", outcome)


def test_the_table_on_the_screen_shows_the_objective_and_not_all_that_is_called_so(tmp_path):
    metrics = {"objective/kl": 1.0, "evaluate/gold": 2.0}
    records(tmp_path, {"state": "finished", "objective": 2.0, "metrics": metrics}, {"state": "failed", "error": "E: e"})
    head, first, *_ = write_table(tmp_path).splitlines()
    assert head.split() == ["job", "seed", "objective", "state", "folder"]
    assert first.split() == ["0", "0", "2", "finished", "jobs/0"]
    with open(tmp_path / "sweep.csv") as file:
        assert next(csv.DictReader(file))["objective/kl"] == "1.0"
    records(tmp_path, {"state": "finished", "objective": [2.0, 1.0], "metrics": metrics})
    assert write_table(tmp_path).split()[2:6] == ["objective", "0", "objective", "1"]


@pytest.mark.parametrize(
    ("error", "says"),
    [("DataError: rows.jsonl:3: prompt: is empty", "no job has finished. The first: rows.jsonl:3: prompt: is empty"),
     ("ValueError: a bug", None), ("nearest: no error", None)],
)  # fmt: skip
def test_where_all_jobs_have_failed_the_error_of_the_first_is_told(tmp_path, error, says):
    assert common_failure(tmp_path) is None
    records(tmp_path, {"state": "failed", "error": error}, {"state": "failed", "error": "RuntimeError: another"})
    found = common_failure(tmp_path)
    assert (found and str(found), found and found.exit_code) == (says, says and 3)
    records(tmp_path, {"state": "finished", "metrics": {}})
    assert common_failure(tmp_path) is None


def test_a_sweeper_that_hides_why_all_jobs_have_failed_is_no_traceback_and_a_bug_is(app):
    words = ["-m", "stage=ppo", "data.train=x"]
    done = app(*words, "seed=2", HIDES="1")
    assert done.returncode == 3 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "DataError: no job has finished. The first: rows.jsonl:3: prompt: is empty"
    done = app(*words, "seed=3", HIDES="1")
    assert done.returncode == 1 and "ValueError: No trials are completed yet." in done.stderr.splitlines()


@pytest.mark.parametrize(
    ("asked", "found"),
    [("a", 1.0), (["b", "a"], [2.0, 1.0]), (None, {"a": 1.0, "b": 2.0}), ("c", None), ([], None), (3, None)],
)
def test_a_job_returns_the_metrics_that_are_asked_for(asked, found):
    config, metrics = {"objective": asked}, {"a": 1.0, "b": 2.0}
    if found is None:
        with pytest.raises(ConfigError, match=r"^objective="):
            check_objective(config, "hydra._internal.core_plugins.basic_sweeper.BasicSweeper")
            objective_of(config, metrics)
    else:
        assert objective_of(config, metrics) == found


def test_a_sweeper_that_compares_jobs_is_told_by_what_before_it_trains():
    with pytest.raises(ConfigError, match=r"^objective: .*objective=METRIC"):
        check_objective({"objective": None}, "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper")


@pytest.mark.parametrize("word", ["hydra/sweeper=optuna", "hydra/launcher=joblib", "hparams_search=optuna"])
@pytest.mark.skipif(find_spec("optuna") is not None, reason="Optuna is installed")
def test_a_sweeper_that_is_not_installed_is_one_sentence(word):
    with pytest.raises(ConfigError, match=r"^hydra/\w+=\w+: is not installed; pip install 'rlhf_lightning\[sweep\]'$"):
        compose([word])


@pytest.mark.parametrize(
    ("key", "value", "may"),
    [
        ("kl.target", "interval(2.0, 8.0)", True), ("ppo.optimizer.lr", "tag(log, interval(1e-5, 1e-3))", True),
        ("seed", "range(0,4)", True), ("sft.max_epochs", "1,2", True), ("sft.output", "choice(a,b)", False),
        ("sft.module._target_", "1", False), ("trainer.num_nodes", "2", False), ("trusted_targets", "[os]", False),
        ("hydra.sweep.dir", "1", False), ("kl.target", "${oc.env:HOME}", False),
    ],
)  # fmt: skip
def test_a_file_may_sweep_numbers_of_stages_only(key, value, may):
    hydra = OmegaConf.load(CONF_DIR / "base.yaml").hydra
    hydra.sweeper = {"params": {key: value}}
    with nullcontext() if may else pytest.raises(ConfigError, match=r"hydra\.sweeper\.params"):
        check_hydra(hydra, [])


def test_own_errors_end_with_their_code_and_without_traceback(app):
    done = app("stage=ppo", "data.train=x", "seed=2")
    assert done.returncode == 3
    assert done.stderr.strip() == "DataError: rows.jsonl:3: prompt: is empty"


def test_a_bug_shows_its_traceback_without_hydra(app):
    done = app("stage=ppo", "data.train=x", "seed=3")
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr
    assert "hydra" not in done.stderr


def test_an_interrupt_ends_with_130(app):
    done = app("stage=ppo", "data.train=x", "seed=4")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_tracebacks_can_be_asked_for(app):
    assert "Traceback" in app("stage=poo", HYDRA_FULL_ERROR="1").stderr
    assert "Traceback" in app("stage=ppo", "data.train=x", "seed=2", HYDRA_FULL_ERROR="1").stderr


@pytest.mark.parametrize(
    ("program", "variables"),
    [
        ("torchrun", {"TORCHELASTIC_RUN_ID": "1"}),
        ("srun", {"SLURM_STEP_NUM_TASKS": "2"}),
        ("mpirun", {"OMPI_COMM_WORLD_SIZE": "2"}),
    ],
)
def test_ranks_of_another_program_need_a_named_folder(app, program, variables):
    done = app("stage=ppo", "data.train=x", **variables)
    assert done.returncode == 2
    assert f"under {program} every rank composes for itself" in done.stderr and "run_dir=" in done.stderr


def test_help_fits_a_screen_and_imports_no_hydra():
    code = "import sys; from rlhf_lightning.cli.main import main; main(); assert 'hydra' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert done.stdout == help_text()
    assert 10 < len(lines) <= 24
    assert max(map(len, lines)) <= 110


def test_hydra_shows_the_same_help(app):
    code = "import hydra; hydra.main(version_base=None, config_path='CONF', config_name='train')(print)()"
    command = [sys.executable, "-c", code.replace("CONF", str(app.folder / "conf")), "--help"]
    done = subprocess.run(command, cwd=app.folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == help_text().strip()


def test_hydra_explains_its_own_flags(app):
    done = app("--hydra-help")
    assert done.returncode == 0 and "--multirun" in done.stdout, done.stderr


def test_help_names_the_stages_and_groups_that_exist():
    text = help_text()
    listed = text.split("\nstages ")[1].splitlines()[0].replace("(default)", "")
    stages = set(listed.replace(";", " ").replace(",", " ").split())
    groups = set(text.split("\ngroups ")[1].splitlines()[0].replace(",", " ").split())
    assert stages == {path.stem for path in (CONF_DIR / "stage").glob("*.yaml")}
    assert text.split("\ncommands ")[1].splitlines()[0].split() == list(COMMANDS)
    assert groups <= {path.name for path in CONF_DIR.iterdir() if path.is_dir()}


def test_help_template_is_valid_yaml():
    template = OmegaConf.load(CONF_DIR / "hydra" / "help" / "rlhf_lightning.yaml").template
    assert template.strip() == help_text().strip()
