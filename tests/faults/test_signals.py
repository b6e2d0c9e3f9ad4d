"""Signals at every moment of a run (cases 18, 52, 63 and 73)."""

import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning import signals
from rlhf_lightning.callbacks import DurableCheckpoint, checkpoint, stop
from rlhf_lightning.checkpoint import io, verify_folder
from rlhf_lightning.checkpoint.io import checkpoints
from rlhf_lightning.cli.grace import Grace
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.rollout import LoopEngine
from rlhf_lightning.scoring.isolation.process import IsolatedFunction
from tests.support import small_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
]
TELLS = "tests.support.hostile_rewards.tells_and_waits"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return small_run.prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def calls(tmp_path, monkeypatch):
    """Where the reward function leaves a file for every call."""
    folder = tmp_path / "calls"
    folder.mkdir()
    monkeypatch.setenv("CALLS", str(folder))
    return folder


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """Checksums of the policies that uninterrupted runs end with."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "calls").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALLS", str(folder / "calls"))
        sft = small_run.go(words, folder / "sft", "stages=[sft]", "sft.max_epochs=3")
        return {"ppo": small_run.go(words, folder / "ppo"), "sft": sft}


@pytest.fixture
def go(words, tmp_path):
    def run(*more):
        with signals.watched(tells=False):
            return small_run.go([*words, "sft.max_epochs=3"], tmp_path / "run", *more)

    return run


def steps(tmp_path, stage):
    return [path.name for path in checkpoints(tmp_path / "run" / "checkpoints" / stage)]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_case_52_a_signal_saves_at_the_end_of_the_step_and_the_run_goes_on_bit_for_bit(go, whole, tmp_path, stage, how):
    at = {"sft": 0, "ppo": 1}[stage]  # SFT: the first of two micro-batches of the first step
    with pytest.raises(signals.Stopped, match=f"stopped by {how}; saved up to .*step-00000[12]. Go on with") as stopped:
        go(f"stages=[{stage}]", small_run.misbehave(how, step=at))
    assert stopped.value.code == {"SIGTERM": 143, "SIGINT": 130}[how]
    assert steps(tmp_path, stage) == ["step-000001" if stage == "sft" else "step-000002"]
    assert go(f"stages=[{stage}]", "resume=auto") == whole[stage]
    rows = (tmp_path / "run" / "history" / f"{stage}.csv").read_text().splitlines()
    assert len([row for row in rows if ",train," in row]) == {"sft": 6, "ppo": 4}[stage]


def test_case_52_without_checkpoints_a_run_stops_and_says_that_nothing_was_saved(go):
    with pytest.raises(signals.Stopped, match="stopped by SIGTERM; no step was saved"):
        go("checkpoint=null", small_run.misbehave("SIGTERM"))


def test_case_52_a_rollout_that_takes_too_long_is_given_up_and_the_last_checkpoint_stays(
    go, whole, tmp_path, monkeypatch
):
    forward = LoopEngine._forward
    signalled = []

    def slow(self, *given):
        if len(checkpoints(tmp_path / "run" / "checkpoints" / "ppo")) == 2:
            signalled or os.kill(os.getpid(), signal.SIGTERM)
            signalled.append(time.monotonic())
            time.sleep(0.1)
        return forward(self, *given)

    monkeypatch.setattr(LoopEngine, "_forward", slow)
    with pytest.raises(signals.Stopped, match=r"the step in progress was given up; saved up to .*step-000002"):
        go("checkpoint.every_n_steps=1", "checkpoint.grace_period_seconds=0.2")
    assert time.monotonic() - signalled[0] < 5
    monkeypatch.undo()
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    assert steps(tmp_path, "ppo") == ["step-000002", "step-000001"]
    assert go("checkpoint.every_n_steps=1", "resume=auto") == whole["ppo"]


def test_case_52_a_reward_function_that_takes_too_long_is_given_up_with_its_process(go, calls, monkeypatch):
    monkeypatch.setenv("WAIT_SECONDS", "60")
    exchange = IsolatedFunction._exchange

    def told(self, message, seconds, too_late):
        if self.pid is not None and b"prompts" in message:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
        return exchange(self, message, seconds, too_late)

    monkeypatch.setattr(IsolatedFunction, "_exchange", told)
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        start = time.monotonic()
        with pytest.raises(signals.Stopped):
            go("scorer.isolate=true", "checkpoint.grace_period_seconds=0.1")
        assert time.monotonic() - start < 20
    finally:
        signal.signal(signal.SIGALRM, before)
    [call] = calls.iterdir()
    with pytest.raises(ProcessLookupError):
        os.kill(int(call.suffix[1:]), 0)


def test_case_18_a_save_that_was_begun_is_completed(go, whole, tmp_path, monkeypatch):
    write = io.write_first

    def slow(folder, encoded):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        return write(folder, encoded)

    monkeypatch.setattr(io, "write_first", slow)
    with pytest.raises(signals.Stopped):
        go("checkpoint.every_n_steps=1")
    monkeypatch.setattr(io, "write_first", write)
    saved = checkpoints(tmp_path / "run" / "checkpoints" / "ppo")
    assert [verify_folder(path)["stage"] for path in saved] == ["checkpoint"] * len(saved)
    assert not [path for path in saved[0].parent.iterdir() if path not in saved]
    assert go("resume=auto", "checkpoint.every_n_steps=1") == whole["ppo"]


def test_case_52_a_signal_in_the_last_step_stops_after_the_stage(go, tmp_path):
    stages = "stages=[sft,ppo]"
    with pytest.raises(signals.Stopped):
        go(stages, small_run.misbehave("SIGTERM", step=3), "sft.max_epochs=1")
    assert verify_folder(tmp_path / "run" / "sft")["stage"] == "sft"
    assert steps(tmp_path, "sft") == [] and not (tmp_path / "run" / "ppo").exists()
    written = (tmp_path / "run" / "sft" / "model.safetensors").stat().st_mtime_ns
    go(stages, "resume=auto", "sft.max_epochs=1")
    assert (tmp_path / "run" / "sft" / "model.safetensors").stat().st_mtime_ns == written


def test_case_52_stages_that_only_sample_stop_at_once(go, tmp_path, monkeypatch):
    forward, forwards = LoopEngine._forward, []

    def told(self, *given):
        forwards.append(1)
        if len(forwards) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *given)

    monkeypatch.setattr(LoopEngine, "_forward", told)
    with pytest.raises(signals.Stopped, match="no step was saved") as stopped:
        go(
            "stages=[rank]",
            "rank.policy=${model.path}",
            "rank.sampling.max_new_tokens=6",
            "rank.data.max_prompt_length=32",
            "judge=function",
            f"judge.function={TELLS}",
        )
    assert stopped.value.code == 130
    assert len(forwards) <= 10 and not (tmp_path / "run" / "rankings").exists()


def test_handlers_are_as_they_were_after_a_run_and_ours_within(go, monkeypatch):
    seen = []
    monkeypatch.setattr(stop.StopAtBoundary, "on_validation_batch_end", lambda *_: seen.append(handlers()))

    def handlers():
        return [signal.getsignal(number) for number in signals.SIGNALS]

    before = handlers()
    go("stages=[sft]")
    assert handlers() == before
    assert seen and all(handler is signals._handle for found in seen for handler in found)  # not Lightning's


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["background", "nohup"])
def test_case_63_a_signal_that_is_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals.watched(tells=False, at_once=True):
            os.kill(os.getpid(), number)
            assert signals.received() == 0
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])  # the other two: the next test
def test_case_63_what_a_system_sends_when_the_time_is_up_saves_the_step(go, tmp_path, name):
    code = 128 + signal.Signals[name]
    with pytest.raises(signals.Stopped, match=f"stopped by {name}; saved up to .*step-000001") as stopped:
        go(small_run.misbehave(name, step=0))
    assert stopped.value.code == code and steps(tmp_path, "ppo") == ["step-000001"]


def test_case_63_only_a_second_sigterm_or_ctrl_c_ends_the_process_at_once(monkeypatch, capfd):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(signals, "SAME_SECONDS", 0.0)
    with signals.watched():
        for name in ("SIGXCPU", "SIGXCPU", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGUSR2", "SIGINT", "SIGTERM"):
            signal.raise_signal(signal.Signals[name])
            assert ends == [] and signals.received() == signal.SIGXCPU
        signal.raise_signal(signal.SIGTERM)
        assert ends == [143]
    told = [line.split(";")[0] for line in capfd.readouterr().err.splitlines()]
    assert told == [f"{name}: stopping at the next safe place" for name in ("SIGXCPU", "SIGINT", "SIGTERM")]


def test_case_63_a_signal_while_the_console_is_closed_is_heard_all_the_same(capfd):
    kept = os.dup(2)
    os.close(2)
    try:
        with signals.watched():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.received() == signal.SIGTERM
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_case_63_a_long_step_is_saved_so_that_a_signal_costs_no_more_than_the_step_it_falls_in(
    go, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "COST", 0)  # on a busy machine a save may take longer than these rollouts
    with monkeypatch.context() as patch:
        patch.setenv("WAIT_SECONDS", "0.4")
        with pytest.raises(signals.Stopped, match=r"the step in progress was given up; saved up to .*step-000002"):
            go("checkpoint.grace_period_seconds=0.2", small_run.misbehave("SIGTERM", step=2))
    assert go("resume=auto", "checkpoint.grace_period_seconds=0.2") == whole["ppo"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_case_63_a_signal_to_the_process_of_a_reward_function_is_left_to_the_run(name):
    worker = IsolatedFunction("tests.support.hostile_rewards.child_answers_signals")
    worker.start()
    try:
        os.kill(worker.pid, signal.Signals[name])
        given = {"prompts": ["a"], "completions": ["b"]}
        assert worker(given, 10) == [float(-signal.SIGTERM)]
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("took", "since", "save", "due"),
    [(6, 6, 0, True), (4, 40, 0, False), (6, 39, 2, False), (6, 41, 2, True), (1, 600, 99, True)],
    ids=["the first", "a short step", "soon after a save", "later", "ten minutes"],
)
def test_case_63_saving_long_steps_costs_a_twentieth_of_the_time(monkeypatch, tmp_path, took, since, save, due):
    saver = DurableCheckpoint(tmp_path)
    saver._step_took, saver._save_took, saver._since = took, save, 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + since)
    assert saver._time_says_so() is due


@pytest.mark.parametrize("knob", ["every_n_minutes", "grace_period_seconds", "every_n_steps"])
def test_case_63_times_that_are_no_numbers_are_refused(tmp_path, knob):
    with pytest.raises(ConfigError, match=f"{knob}=nan: must be"):
        DurableCheckpoint(tmp_path, **{knob: float("nan")})


# A command whose ranks answer no signal, as in code of a driver; the last argument is the longest they may take.
DEAF = """
import os, signal, sys, time
from pathlib import Path
from rlhf_lightning import signals
from rlhf_lightning.cli import grace
from rlhf_lightning.cli import launch as launching
from rlhf_lightning.cli.launch import HANDOVER_VARIABLE, launch, serve

def hangs(config):
    Path(os.environ["RANK"]).touch()
    while os.environ["RANK"] == "1": time.sleep(60)
    while not signals.received(): time.sleep(0.01)

if HANDOVER_VARIABLE in os.environ:
    serve(hangs)
launching.RANK_PROGRAM = [__file__]
grace.GRACE_SECONDS = 0.3
try:
    with signals.watched():
        launch({"trainer": {}, "run_dir": "run", "checkpoint": {"grace_period_seconds": 0.2}}, 2)
except signals.Stopped as stop:
    print(stop, flush=True)
    sys.exit(stop.code)
"""


def test_case_63_a_rank_that_does_not_end_after_a_signal_is_named_and_killed(tmp_path):
    (tmp_path / "deaf.py").write_text(DEAF)
    process = subprocess.Popen(
        [sys.executable, "deaf.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(small_run.ROOT)},
    )  # fmt: skip
    limit = time.monotonic() + 20
    while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()) and time.monotonic() < limit:
        time.sleep(0.01)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 143 and time.monotonic() - start < 5
    assert re.match(r"stopped by SIGTERM; rank 1 did not respond in hangs \(deaf\.py:\d+\) and was killed", output)


def test_case_63_ranks_that_write_have_as_long_as_it_grows(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    wait = Grace({"run_dir": str(tmp_path), "sft": {"output": str(tmp_path / "models" / "sft")}})
    wait.begin()
    assert not wait.over()
    now[0] = 25.1
    assert wait.over()  # nothing is written
    for folder in ("checkpoints/ppo/.tmp-step-000001-x", "models/.tmp-sft-x"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "tensors").write_bytes(b"")
        for size in (1, 2):
            assert not wait.over()
            now[0] += 120.1
            (tmp_path / folder / "tensors").write_bytes(bytes(size))
        assert not wait.over()
        now[0] += 120.1
        assert wait.over()


@pytest.mark.parametrize(("name", "seconds"), [("SIGINT", 0.5), ("SIGTERM", 1.5)], ids=["composing", "importing"])
def test_case_73_the_command_ends_at_once_as_long_as_nothing_has_begun(words, tmp_path, name, seconds):
    process = small_run.start(words, f"run_dir={tmp_path / 'run'}")
    time.sleep(seconds)
    process.send_signal(signal.Signals[name])
    start = time.monotonic()
    output, _ = process.communicate(timeout=40)
    assert time.monotonic() - start < 3
    *before, last = output.splitlines()
    assert last == f"stopped by {name}; nothing had begun" and len(before) <= 1  # which stages were to run
    assert process.returncode == 128 + signal.Signals[name]
    assert list(tmp_path.iterdir()) == [tmp_path / "calls"]  # not even an empty folder stays


def test_case_73_ranks_in_their_start_up_end_at_once_too(words, tmp_path):
    process = small_run.start(words, *small_run.TWO_RANKS, f"run_dir={tmp_path / 'run'}")
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    output, _ = process.communicate(timeout=40)
    assert time.monotonic() - start < 5
    *before, last = output.splitlines()
    assert (process.returncode, last) == (130, "stopped by SIGINT; nothing had begun") and len(before) <= 1


LAUNCHER = """
import time
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher

@dataclass
class Conf:
    _target_: str = "hydra_plugins.elsewhere.Elsewhere"

ConfigStore.instance().store(group="hydra/launcher", name="elsewhere", node=Conf)

class Elsewhere(Launcher):
    def setup(self, **given):
        pass

    def launch(self, job_overrides, initial_job_idx):
        print("started", flush=True)
        time.sleep(60)
"""


def test_jobs_that_a_launcher_has_started_elsewhere_are_not_called_nothing(words, tmp_path):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "elsewhere.py").write_text(LAUNCHER)
    more = ["hydra/launcher=elsewhere", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    process = small_run.start(words, *more, sweep=True, PYTHONPATH=f"{small_run.ROOT}{os.pathsep}{tmp_path}")
    lines = iter(process.stdout.readline, "")
    seen = next((line for line in lines if line == "started\n"), None)
    process.terminate()
    output, _ = process.communicate(timeout=40)
    assert seen and process.returncode == 143
    assert output == "stopped by SIGTERM; jobs that hydra/launcher=elsewhere has started may go on\n"


def test_work_within_its_patience_goes_on():
    with signals.watched(tells=False):
        signals.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        with signals.grace_period(60):
            signals.poll()
        with pytest.raises(signals.Stopped):
            signals.poll()
    signals.poll()


WAIT = """
import time
from rlhf_lightning import signals
with signals.watched():
    print("ready", flush=True)
    while True:
        time.sleep(60)
"""


@pytest.mark.parametrize(("pause", "ends"), [(0.1, False), (1.2, True)], ids=["the same one", "another"])
def test_case_52_a_second_signal_ends_the_process_at_once(pause, ends):
    process = subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
        process.send_signal(signal.SIGTERM)
        if ends:
            assert process.wait(timeout=2) == 143
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
    finally:
        process.kill()
        _, errors = process.communicate()
    assert errors.count("a second SIGTERM ends the run at once") == 1


def test_case_52_ctrl_c_in_a_terminal_ends_the_command_with_130_and_its_worker_with_it(words, calls, tmp_path):
    process = small_run.start(
        words,
        f"run_dir={tmp_path / 'run'}",
        "scorer.isolate=true",
        "ppo.rollouts=1000",
        WAIT_FROM="2",
        WAIT_SECONDS="1",
    )
    try:
        limit = time.monotonic() + 60
        while len(list(calls.iterdir())) < 3 and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody in the foreground
        start = time.monotonic()
        output, _ = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, output
    assert time.monotonic() - start < 10
    assert output.splitlines()[-1].startswith("stopped by SIGINT; saved up to")
    for call in calls.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(call.suffix[1:]), 0)


def test_a_signal_that_comes_while_ranks_agree_waits_for_the_next_step(monkeypatch):
    """Acted upon by one rank alone it would leave the others waiting."""
    with signals.watched():
        asked = []

        def reduce(signum, reduce_op):
            asked.append(int(signum))
            if len(asked) == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.05)
                return signum
            return torch.tensor(max(int(signum), 0))

        strategy = SimpleNamespace(reduce=reduce, root_device=torch.device("cpu"))
        trainer = SimpleNamespace(world_size=2, strategy=strategy, checkpoint_callbacks=[])
        callback, done = stop.StopAtBoundary(), iter(range(10))
        monkeypatch.setattr(stop, "steps_done", lambda trainer: next(done))
        monkeypatch.setattr(stop, "steps_planned", lambda trainer: 9)
        callback.on_train_start(trainer, None)
        callback.on_train_batch_end(trainer, None, None, None, 0)
        callback.on_train_batch_start(trainer, None, None, 1)  # goes on
        callback.on_train_batch_end(trainer, None, None, None, 1)
        with pytest.raises(signals.Stopped):
            callback.on_train_batch_start(trainer, None, None, 2)
        assert asked == [0, signal.SIGUSR1]
