"""Several ranks: one raises, dies, hangs or is told to stop (case 53), sweeps (54), locks and folders (11, 17)."""

import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import nullcontext

import pytest

from rlhf_lightning.checkpoint.places import LOCK
from rlhf_lightning.checkpoint.provenance import verify_folder
from rlhf_lightning.cli import launch
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.rules.started import adopt_mpirun, check_started, number
from rlhf_lightning.stages import pipeline, ranks
from rlhf_lightning.stages.resume import RunFolder
from tests.support import small_run
from tests.support.threads import together

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
TIMEOUT = 6  # seconds in which a rank must answer
TWO_RANKS = [*small_run.TWO_RANKS, f"trainer.strategy.timeout={TIMEOUT}"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return small_run.prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def calls(tmp_path, monkeypatch):
    (tmp_path / "calls").mkdir()
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))


# A command whose ranks do no training: what is tested is how they are started, watched and ended.
PROGRAM = """
    import os, signal, sys, time
    from pathlib import Path
    from rlhf_lightning import signals
    from rlhf_lightning.errors import DataError
    from rlhf_lightning.cli import launch as launching
    from rlhf_lightning.cli.launch import HANDOVER_VARIABLE, RankError, launch, serve

    def work(config):
        rank = int(os.environ["RANK"])
        Path(str(os.getpid())).touch()
        if rank == config["rank"]:
            if config["how"] == "raise": raise DataError("rows.jsonl:3: is empty")
            if config["how"] == "bug": raise KeyError("a bug")
            if config["how"] == "exit": os._exit(9)
            if config["how"] == "kill": os.kill(os.getpid(), signal.SIGKILL)
            if config["how"] == "hang": time.sleep(1e6)
            if config["how"] in ("SIGINT", "early"): os.kill(os.getpid(), signal.SIGINT)
            if config["how"] == "none": return {"rank": rank, "config": config}
        if config["how"] == "hang":
            time.sleep(0.2)
            raise RuntimeError("[gloo/transport/tcp/pair.cc] Timed out waiting 200ms for recv")
        if config["how"] == "deaf":
            time.sleep(1e6)
        if config["how"] == "none":
            return None
        while True:
            time.sleep(0.01)
            signals.poll()

    if HANDOVER_VARIABLE in os.environ:
        if sys.argv[1] == "early" and os.environ["RANK"] != sys.argv[2]:
            time.sleep(1e6)  # starting up, without a handler yet
        serve(work)

    def job(how, rank):
        launching.RANK_PROGRAM = [os.environ["PROGRAM"], how, str(rank)]
        return launch({"how": how, "rank": rank, "trainer": {}}, 2)

    try:
        if sys.argv[1] == "joblib":
            from joblib import Parallel, delayed
            print(Parallel(n_jobs=2)(delayed(job)("none", 0) for _ in range(2)))
            sys.exit()
        with signals.watched():
            print(job(sys.argv[1], int(sys.argv[2])), flush=True)
    except RankError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


@pytest.fixture
def command(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    folder = tmp_path / "pids"
    folder.mkdir()
    started = []

    def start(how, rank):
        environment = {**os.environ, "PYTHONPATH": str(small_run.ROOT), "PROGRAM": str(program)}
        process = subprocess.Popen(
            [sys.executable, str(program), how, str(rank)], cwd=folder, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    assert not [int(path.name) for path in folder.iterdir() if runs(int(path.name))]


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_ranks(tmp_path):
    limit = time.monotonic() + 20
    while len(list((tmp_path / "pids").iterdir())) < 2 and time.monotonic() < limit:
        time.sleep(0.01)


FAULTS = {
    "raise": (3, "DataError: rows.jsonl:3: is empty"),
    "bug": (1, "KeyError: 'a bug'"),
    "exit": (1, "ended with exit code 9 and no error message"),
    "kill": (1, "was ended by SIGKILL, perhaps for lack of memory"),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", FAULTS)
def test_case_53_the_first_error_is_shown_last_and_gives_the_exit_code(command, how, rank):
    process = command(how, rank)
    _, errors = process.communicate(timeout=40)
    code, says = FAULTS[how]
    assert process.returncode == code
    assert errors.splitlines()[-1] == f"rank {rank}: {says}"
    assert ("Traceback" in errors) is (how == "bug")


@pytest.mark.parametrize("rank", [0, 1])
def test_case_53_a_rank_that_hangs_is_killed_and_named_by_the_one_that_waited(command, rank):
    process = command("hang", rank)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith(f"rank {1 - rank}: RuntimeError: [gloo")
    assert re.search(rf"\(rank {rank} did not respond in work \(program\.py:\d+\) and was killed\)$", last)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["SIGINT", "early"])
def test_case_52_a_signal_to_one_rank_stops_the_others_too(command, how, rank):
    process = command(how, rank)
    process.communicate(timeout=40)
    assert process.returncode == 130


def test_case_52_the_command_tells_its_ranks_and_ends_with_the_code_of_the_signal(command, tmp_path):
    process = command("", 0)
    wait_for_ranks(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=40)
    assert process.returncode == 143


def test_case_53_ranks_end_with_the_command_even_when_it_is_killed(command, tmp_path):
    process = command("deaf", 0)
    wait_for_ranks(tmp_path)
    process.kill()
    process.communicate()
    limit = time.monotonic() + 5
    while any(runs(int(path.name)) for path in (tmp_path / "pids").iterdir()) and time.monotonic() < limit:
        time.sleep(0.01)  # the check itself is at the end of `command`


def test_the_first_rank_returns_what_its_work_returned(command):
    output, errors = command("none", 0).communicate(timeout=40)
    assert output == "{'rank': 0, 'config': {'how': 'none', 'rank': 0, 'trainer': {}}}\n", errors


def test_workers_of_joblib_start_ranks_and_return_what_the_first_of_them_does(command):
    pytest.importorskip("joblib")
    output, errors = command("joblib", 0).communicate(timeout=40)
    returned = {"rank": 0, "config": {"how": "none", "rank": 0, "trainer": {}}}
    assert output == f"{[returned, returned]}\n", errors


@pytest.mark.parametrize(
    ("trainer", "variable", "processes"),
    [
        ({"devices": 2, "strategy": "ddp"}, None, 2),
        ({"devices": 1, "strategy": "auto"}, None, 1),
        ({"devices": "auto", "accelerator": "cpu"}, None, 1),
        ({"devices": 2}, "LOCAL_RANK", 1),
        ({"devices": 2}, "TORCHELASTIC_RUN_ID", 1),
        ({"devices": 2}, "SLURM_STEP_NUM_TASKS", 1),
        ({"devices": 2}, "SLURM_PROCID", 2),
        ({"devices": 2}, "OMPI_COMM_WORLD_NUM_APP_CTX", 2),
        ({"devices": 2}, "PMI_SIZE", 1),
    ],
)
def test_as_many_processes_are_started_as_nobody_else_has(monkeypatch, trainer, variable, processes):
    if variable:
        monkeypatch.setenv(variable, "2" if "NUM" in variable or "SIZE" in variable else "0")
    assert launch.count(trainer) == processes


@pytest.mark.parametrize(
    ("environment", "trainer", "says"),
    [
        (
            {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"},
            {"devices": 1},
            "torchrun has started 2 processes.*num_nodes=2",
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "8"},
            {"devices": 4, "num_nodes": 1},
            "srun has started 8 .*; set trainer.num_nodes=2",
        ),
        ({"SLURM_STEP_NUM_TASKS": "6"}, {"devices": 4, "num_nodes": 2}, "started 6 processes, and .* makes 8"),
        ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "1"}, {"devices": 2}, "started 1 process, and .* makes 2"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, {"devices": 4, "num_nodes": 2}, None),
        ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}, {"devices": "auto"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, {"devices": 2}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, {"devices": 2}, "mpirun has started 4 .*; set trainer.num_nodes=2"),
        ({"PMI_SIZE": "2"}, {"devices": 2}, None),
        ({}, {"devices": 2, "num_nodes": 2}, None),
    ],
)
def test_another_number_of_processes_than_were_started_is_one_sentence(monkeypatch, environment, trainer, says):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=says) if says else nullcontext():
        check_started(trainer)


OF_OPEN_MPI = [f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")]
OF_MPICH = ["PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]
ADDRESS = {"MASTER_ADDR": "first", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("names", "values", "given", "expected"),
    [
        (OF_OPEN_MPI, (2, 1, 1, 2), {}, ("2", "1", "1", "0", "127.0.0.1", "29500")),
        (OF_MPICH, (4, 2, 0, 2), ADDRESS, ("4", "2", "0", "1", "first", "1")),
        (OF_OPEN_MPI, (1, 0, 0, 1), {}, (None,) * 6),
        (OF_OPEN_MPI, (4, 2, 0, 2), {}, "add -x MASTER_ADDR=HOST"),
        (OF_OPEN_MPI, (4, 1, 0, 2), ADDRESS, "rank 1 of mpirun is number 0 of 2 on its machine.*--map-by slot"),
        (OF_OPEN_MPI, (3, 0, 0, 2), ADDRESS, "must have as many ranks"),
        (OF_MPICH[:2], (2, 1), {}, "or use torchrun"),
    ],
)
def test_a_rank_of_mpirun_gets_the_variables_of_torch(monkeypatch, names, values, given, expected):
    found = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    monkeypatch.setattr(os, "environ", {**given, **{name: str(v) for name, v in zip(names, values, strict=True)}})
    with pytest.raises(ConfigError, match=expected) if isinstance(expected, str) else nullcontext():
        adopt_mpirun()
        assert tuple(os.environ.get(name) for name in found) == expected
        assert number() == int(expected[1] or 0)


@pytest.mark.parametrize("folders", [("run", "run"), ("run", "elsewhere"), ("run", "")], ids=lambda names: names[1])
def test_a_folder_that_is_not_the_same_for_all_ranks_is_one_sentence(monkeypatch, tmp_path, folders):
    """Two ranks as threads; a disk of a machine's own is another folder for the second, which need not be there."""
    here = threading.local()
    for name in filter(None, folders):
        (tmp_path / name).mkdir(exist_ok=True)

    def check(rank):
        here.rank = rank
        return ranks.check_shared(tmp_path / (folders[rank.index] or "nowhere"))

    monkeypatch.setattr(ranks, "APPEARS_SECONDS", 0.2)
    monkeypatch.setattr(ranks, "everyone", lambda: here.rank)
    told = [error and str(error).partition(": ")[2] for error in together(2, check)]
    name = platform.node()
    says = (
        f"rank 1 on {name} does not see what rank 0 on {name} writes there; choose a folder on a disk that all machines"
    )
    assert told == ([None, None] if folders == ("run", "run") else [f"{says} share"] * 2)
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("trainer", ["strategy=dpp", "accelerator=tpu", "accelerator=gpu", "devices=-1"])
def test_a_trainer_that_cannot_be_made_here_is_a_config_mistake(words, tmp_path, monkeypatch, trainer):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    config = compose([*words, f"run_dir={tmp_path}", f"trainer.{trainer}"])
    with pytest.raises(ConfigError, match=f"trainer.{trainer}.*: no Trainer can be made of this"):
        launch.count(config["trainer"])
        pipeline.run(config)


def test_strategies_that_copy_processes_are_refused():
    with pytest.raises(ConfigError, match="use trainer=ddp"):
        launch.count({"strategy": "ddp_spawn", "devices": 2})


def test_case_54_ranks_with_different_configs_are_refused_with_the_keys(monkeypatch):
    here = threading.local()
    monkeypatch.setattr(ranks, "everyone", lambda: here.rank)

    def compared(*configs):
        def compare(rank):
            here.rank = rank
            return ranks.compare(configs[rank.index])

        return together(2, compare)

    for error in compared({"ppo": {"lr": 1}, "seed": 0}, {"ppo": {"lr": 2}, "seed": 0}):
        assert isinstance(error, ConfigError)
        assert "rank 1 has another config than rank 0 (ppo.lr: 1 -> 2)" in str(error)
    for error in compared({"hub_token": "mine"}, {"hub_token": "theirs"}):
        assert "a key that holds a secret" in str(error) and "mine" not in str(error)
    assert compared({"seed": 0}, {"seed": 0}) == [None, None]


def ended(process, seconds):
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()  # and its ranks with it
        process.wait()
    return process.returncode, output.splitlines()


FAST = ["hang 0"]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(f"{how} {rank}", marks=[] if f"{how} {rank}" in FAST else pytest.mark.soak)
        for how in ("raise", "exit", "kill", "hang")
        for rank in (0, 1)
    ],
)
def test_case_53_every_fault_of_a_rank_ends_the_run_within_the_time_out_and_ten_seconds(words, tmp_path, fault):
    how, rank = fault.split()
    bad = small_run.misbehave(how, rank)
    process = small_run.start(words, *TWO_RANKS, bad, f"run_dir={tmp_path / 'run'}")
    code, lines = ended(process, 120)
    limit = TIMEOUT + 10
    rollouts = [line for line in lines if "rollout 1/4 " in line]
    assert code == 1, lines
    assert rollouts and not [line for line in lines if "rollout 3/" in line]
    written = (tmp_path / "run" / "history" / "ppo.csv").stat().st_mtime  # at the start of the step that failed
    assert time.time() - written < limit
    first = 1 - int(rank) if how == "hang" else rank
    assert lines[-1].startswith(f"rank {first}: "), lines[-1]


@pytest.mark.slow  # tests/cli/test_cli.py has the same without training
def test_case_54_every_job_of_a_sweep_has_its_own_ranks_folder_and_values(words, tmp_path):
    sweep = ["seed=0,1", "ppo.rollouts=1", f"output_root={tmp_path}"]
    code, lines = ended(small_run.start(words, *TWO_RANKS, *sweep, sweep=True), 120)
    assert code == 0, lines
    [folder] = (tmp_path / "multirun").iterdir()
    jobs = sorted(path for path in folder.iterdir() if path.is_dir())
    assert [path.name for path in jobs] == ["0", "1"]
    assert ["seed: 0" in (job / "config.yaml").read_text().splitlines() for job in jobs] == [True, False]
    first, second = (verify_folder(job / "ppo") for job in jobs)
    assert first["config"]["settings"]["seed"] == 0 and second["config"]["settings"]["seed"] == 1
    assert first["files"]["model.safetensors"] != second["files"]["model.safetensors"]
    assert len([line for line in lines if " 1 rollout in " in line]) == 2  # each of them trained once


def test_case_11_a_second_process_is_refused_and_a_stale_lock_is_taken_over(tmp_path):
    config = {"run_dir": str(tmp_path), "resume": "none", "stages": []}
    (tmp_path / LOCK).write_text("process 1 on elsewhere\n")  # left by a run that is gone
    with RunFolder(config).lock():
        owner = f"in use by process {os.getpid()} on {platform.node()}"
        with pytest.raises(CheckpointError, match=re.escape(owner)), RunFolder(config).lock():
            pass
    with RunFolder(config).lock():
        pass


def test_case_17_runs_of_the_same_second_have_folders_of_their_own():
    folders = {compose(["stage=sft"])["run_dir"] for _ in range(3)}
    assert len(folders) == 3
