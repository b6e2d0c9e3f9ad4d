"""Reward functions that raise, hang, die or answer nonsense: the policy holds, the error shows the sample, no process
is left behind."""

import bdb
import datetime
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

from rlhf_lightning.config.compose import compose, safe_instantiate
from rlhf_lightning.errors import ConfigError, RewardFunctionError
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer, RewardSources, details_of
from rlhf_lightning.stages.pipeline import run
from tests.gates.gate_sources import ROOT
from tests.support import hostile_rewards, tiny

HERE = "tests.support.hostile_rewards"
COMPLETIONS = ["good", "fine words", "odd", "bad"]
HANGS = ("sleeps", "regex", "ignores_signals")
CULPRITS = {  # what each does, and the sample the error must show
    "raises": (r"raised KeyError: 'odd' \(hostile_rewards\.py:\d+\)", 2),
    "sleeps": (r"did not respond within 0\.5 s", 0),
    "regex": (r"did not respond within 0\.5 s", 2),
    "ignores_signals": (r"did not respond within 0\.5 s", 0),
    "exits": (r"ended its process \(exit code 3\)", 0),
    "sys_exits": (r"raised SystemExit: 0", 0),
    "segfaults": (r"ended its process \(signal SIGSEGV\)", 0),
    "killed": (r"ended its process \(signal SIGKILL\)", 0),
    "nan": (r"returned nan where a finite number is needed, or None to abstain", 2),
    "infinite": (r"returned -inf where a finite number", 2),
    "too_large": (r"returned 1e\+39 where a finite number", 2),
    "enormous": (r"returned 10000\d+ where a finite number", 2),
    "text": (r"returned '1\.0' \(str\) where a finite number", 2),
    "nothing": (r"returned None for 4 completions", 0),
    "one_number": (r"returned 0\.5 for 4 completions", 0),
    "too_few": (r"returned 3 values for 4 completions", 2),
    "generator": (r"returned <generator.*\(generator\) for 4 completions", 0),
    "mapping": (r"returned \{.*\} \(dict\) for 4 completions", 0),
    "cube": (r"returned \[0\.0, 0\.0\] where a finite number", 0),
    "column_vector": (r"returned 1 numbers for the 2 tokens", 0),
}
WHOLE = set(CULPRITS) - {"nan", "infinite", "too_large", "enormous", "text", "column_vector"}
IMPORTS_TORCH = {"cube", "column_vector", "tensor"}  # seconds to start: these run in the process of the test


def running(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(*pids, seconds=5.0):
    end = time.monotonic() + seconds
    while any(map(running, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(map(running, pids))


def children():
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


@pytest.fixture(autouse=True)
def nothing_is_left():
    before, files = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert children() == before
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.fixture
def scorer():
    made = []

    def make(name, isolate=True, timeout=30.0, **options):
        made.append(FunctionScorer(f"{HERE}.{name}", isolate=isolate, timeout=timeout, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def scores(scorer, completions=COMPLETIONS, **columns):
    rows = [{"prompt": f"prompt {i}", **columns} for i in range(len(completions))]
    return scorer.score_texts([row["prompt"] for row in rows], completions, rows, [[5, 1] for _ in completions])


def test_an_isolated_function_gives_what_it_gives_here(scorer):
    isolated = scorer("words")
    assert scores(isolated) == scores(scorer("words", isolate=False)) == [1.0, 2.0, 1.0, 1.0]
    first = isolated._isolated.pid
    assert scores(isolated, ["a b c"]) == [3.0]
    assert isolated._isolated.pid == first != os.getpid()
    assert scores(scorer("decimals")) == [0.5] * 4
    assert scores(scorer("tensor", isolate=False)) == [0.0, 1.0, 2.0, 3.0]


def test_arguments_arrive_as_they_are(scorer):
    prompts = ["p", [{"role": "user", "content": "h\u00e9\ud800"}]]
    rows = [{"prompt": prompts[0], "pair": (1, 2), "array": np.arange(2.0), "number": float("inf")}, {"prompt": ""}]
    assert scorer("columns_back", abstain_value=-1.0).score_texts(prompts, ["a", "b\x00\u2028"], rows) == [1.0, -1.0]


def test_what_json_cannot_hold_is_refused_with_the_name_of_the_column(scorer):
    with pytest.raises(ConfigError, match=r"column 'when' .* holds a date\); .* isolate=false"):
        scores(scorer("words", on_error="abstain"), when=datetime.date(2026, 1, 1))
    assert len(scores(scorer("words", isolate=False), when=datetime.date(2026, 1, 1))) == 4


def test_a_function_without_room_for_the_columns_is_told_of_them(scorer):
    with pytest.raises(RewardFunctionError, match=r"unexpected keyword argument 'topic'.*\n.*add \*\*columns"):
        scores(scorer("bare"), topic="x")
    assert scores(scorer("bare")) == [0.0] * 4


def test_what_the_function_prints_is_not_taken_for_its_answer(scorer, capfd):
    printing = scorer("prints")
    assert scores(printing) == scores(printing) == [1.0, 2.0, 1.0, 1.0]
    out, err = capfd.readouterr()
    assert out == "" and err.count("to stdout") == err.count("to descriptor 1") == err.count("from a child") == 2


@pytest.mark.parametrize("name", CULPRITS)
def test_case_51_raise_ends_with_an_error_that_shows_the_sample(scorer, name):
    failing = scorer(name, isolate=name not in IMPORTS_TORCH, timeout=0.5 if name in HANGS else 30.0)
    says, sample = CULPRITS[name]
    with pytest.raises(RewardFunctionError, match=says) as caught:
        scores(failing)
    shown = re.search(r"sample (\d) of 4(.*): prompt 'prompt (\d)', completion '(.*)' \(1 try\)", str(caught.value))
    assert shown[1] == shown[3] == str(sample) and shown[4] == COMPLETIONS[sample]
    assert "scorer.on_error=abstain" in str(caught.value)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("name", CULPRITS)
def test_case_51_abstain_and_a_value_go_on_and_count(scorer, name, caplog):
    options = {"isolate": name not in IMPORTS_TORCH, "timeout": 0.5 if name in HANGS else 30.0}
    abstaining = scorer(name, on_error="abstain", abstain_value=7.0, **options)
    with caplog.at_level(logging.WARNING):
        found = scores(abstaining)
    assert re.search(CULPRITS[name][0] + r".*on_error=abstain", caplog.text)
    lost = [value != value for value in found]
    assert lost == ([True] * 4 if name in WHOLE or name in IMPORTS_TORCH else [False, False, True, False])
    valued = scorer(name, on_error=-1, **options)
    assert [value == -1.0 for value in scores(valued)] == lost


def test_the_error_of_a_long_sample_is_short(scorer):
    with pytest.raises(RewardFunctionError) as caught:
        scores(scorer("exits"), ["x" * 10_000])
    assert len(str(caught.value)) < 1000 and "(10002 characters)" in str(caught.value)


def test_the_traceback_of_the_worker_comes_along(scorer):
    with pytest.raises(RewardFunctionError) as caught:
        scores(scorer("raises"))
    (note,) = caught.value.__cause__.__notes__
    assert "in raises" in note and "KeyError" in note


def test_case_51_a_hang_shows_where_it_hung(scorer, capfd):
    with pytest.raises(RewardFunctionError, match=r"scorer\.timeout="):
        scores(scorer("regex", timeout=0.4), ["odd"])
    assert "in regex" in capfd.readouterr().err


def test_case_51_a_death_is_tried_again_and_the_next_call_finds_a_worker(scorer, tmp_path):
    shaky = scorer("second_time", retries=1)
    assert scores(shaky, folder=str(tmp_path)) == [1.0, 2.0, 1.0, 1.0]
    (tmp_path / "seen").unlink()
    once = scorer("second_time", on_error="abstain")
    assert all(value != value for value in scores(once, folder=str(tmp_path)))
    assert scores(once, folder=str(tmp_path)) == [1.0, 2.0, 1.0, 1.0]


def test_tries_are_bounded(scorer):
    begin = time.monotonic()
    with pytest.raises(RewardFunctionError, match=r"\(3 tries\)"):
        scores(scorer("sleeps", timeout=0.2, retries=2), ["x"])
    assert time.monotonic() - begin < 5
    calls = []

    def broken(prompts, completions, **columns):
        calls.append(1)
        raise ValueError

    with pytest.raises(RewardFunctionError, match=r"\(3 tries\)"):
        scores(FunctionScorer(broken, retries=2), ["x"])
    assert len(calls) == 3


def test_a_worker_that_dies_between_calls_costs_nothing(scorer):
    steady = scorer("words")
    scores(steady)
    os.kill(steady._isolated.pid, signal.SIGKILL)
    time.sleep(0.05)
    assert scores(steady) == [1.0, 2.0, 1.0, 1.0]


def test_the_deadline_ends_what_the_function_started_too(scorer, tmp_path):
    with pytest.raises(RewardFunctionError):
        scores(scorer("spawns", timeout=0.5), ["x"], folder=str(tmp_path))
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_worker_ends_with_its_scorer():
    scorer = FunctionScorer(f"{HERE}.words", isolate=True)
    scores(scorer)
    pid = scorer._isolated.pid
    del scorer
    assert gone(pid)


def test_case_51_a_worker_that_hangs_in_c_code_ends_with_a_killed_parent(tmp_path):
    script = f"""
import sys, types
import rlhf_lightning
package = types.ModuleType("rlhf_lightning.scoring")  # without its torch
package.__path__ = [rlhf_lightning.__path__[0] + "/scoring"]
sys.modules["rlhf_lightning.scoring"] = package
from rlhf_lightning.scoring.isolation.process import IsolatedFunction
function = IsolatedFunction("{HERE}.words")
function(dict(prompts=[], completions=[]), 30)
print(function.pid, flush=True)
function.path = "{HERE}.regex"
function.close()
import threading
threading.Timer(0.5, lambda: print(function.pid, flush=True)).start()
function(dict(prompts=["p"], completions=["odd"]), 30)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with parent:
        ended, hanging = (int(parent.stdout.readline()) for _ in range(2))
        assert gone(ended) and running(hanging)
        parent.kill()
    assert gone(hanging)


def test_ctrl_c_does_not_leave_an_answer_for_the_next_call(scorer):
    steady = scorer("sleeps")

    def interrupt(number, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            scores(steady)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert steady._isolated.pid is None


def test_without_isolation_it_runs_here_and_a_debugger_can_be_left():
    def quits(prompts, completions, **columns):
        pids.append(os.getpid())
        raise bdb.BdbQuit

    pids = []
    with pytest.raises(bdb.BdbQuit):
        scores(FunctionScorer(quits, on_error="abstain", retries=1))
    assert pids == [os.getpid()]


def test_in_a_config_functions_are_isolated_and_the_judge_brings_its_policy_along():
    words = ["stage=ppo", "judge=function", f"judge.function={HERE}.words", "judge.on_error=-2", "judge.timeout=5"]
    config = compose([*words, "+scorer@ppo.other=function", f"ppo.other.function={HERE}.words"])
    for node, on_error, timeout in ((config["scorer"], -2.0, 5), (config["ppo"]["other"], "raise", 60.0)):
        scorer = safe_instantiate(node, trusted=config["trusted_targets"])
        assert isinstance(scorer, FunctionScorer) and scorer._isolated is not None
        assert (scorer.on_error, scorer.timeout, scorer.retries) == (on_error, timeout, 0)
    with pytest.raises(ConfigError, match="no scorer is configured"):
        safe_instantiate(compose(["stage=ppo", "task=custom", "model.path=m"])["scorer"])


def test_functions_without_an_import_path_are_refused_and_others_found():
    with pytest.raises(ConfigError, match=r"isolate=true: .*isolate=false"):
        FunctionScorer(lambda prompts, completions: [], isolate=True)
    found = FunctionScorer(hostile_rewards.words, isolate=True)
    assert scores(found) == [1.0, 2.0, 1.0, 1.0]
    found.close()


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": float("inf")}, {"retries": -1}, {"on_error": "ignore"}, {"on_error": float("nan")},
     {"on_error": True}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        FunctionScorer(hostile_rewards.words, **options)


# ------------------------------------------------------------------------------------------------------ training


def fit(scorer, rollouts=3):
    module = PPOModule(
        tiny.policy(scale=0.3), scorer, tiny.tokenizer(), optimizer=partial(torch.optim.SGD, lr=1e-3),
        sampling=Sampling(max_new_tokens=4), settings=PPOSettings(ppo_epochs=2, num_minibatches=2),
    )  # fmt: skip
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, tiny.Prompts(tiny.prompts("the food was", "we left", repeats=2), rollouts))
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_case_51_failures_leave_the_number_of_steps_and_the_weights_as_they_are(scorer):
    failing, logged = fit(scorer("exits", on_error="abstain"))
    working, _ = fit(scorer("words"))
    assert failing.rollouts == working.rollouts == 3
    assert failing.optimizer_steps == working.optimizer_steps == 3 * 2 * 2
    assert logged["rewards/failed_calls/mean"] == logged["rewards/failed_answers/mean"] == 1.0
    assert logged["rewards/retries/mean"] == 0.0
    assert failing.last_experience.counted.tolist() == [False] * 4  # nothing was learned, rather than a score of 0
    start = dict(tiny.policy(scale=0.3).named_parameters())
    assert all(torch.equal(p, start[name]) for name, p in failing.policy.named_parameters())
    assert not all(torch.equal(p, start[name]) for name, p in working.policy.named_parameters())


def test_counts_of_a_source_carry_its_name(scorer):
    calls = []

    def sometimes(prompts, completions, **columns):
        calls.append(1)
        return [1.0, float("nan"), 1.0, 1.0] if len(calls) < 3 else [1.0] * 4

    sources = RewardSources({"a": FunctionScorer(sometimes, retries=1, on_error=0.0), "b": scorer("words")})
    module, logged = fit(sources, rollouts=1)
    rollout = module.last_experience.rollout
    assert details_of(sources, rollout)["a/failed_answers"].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert (logged["rewards/a/failed_calls/mean"], logged["rewards/a/retries/mean"]) == (2.0, 1.0)
    assert not any(name.startswith("rewards/b/") and "failed" in name for name in logged)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
def test_case_51_a_run_ends_with_code_six(tmp_path):
    tiny.policy().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in ("the food", "we left")))
    words = [
        "stage=ppo", "task=custom", "logger=none", f"model.path={tmp_path / 'model'}", "trainer=cpu",
        f"data.prompts={tmp_path / 'prompts.jsonl'}", "judge=function", f"judge.function={HERE}.killed", "threads=1",
        "ppo.rollouts=1", "ppo.data.batch_size=2", "ppo.settings.num_minibatches=1", "ppo.data.max_prompt_length=32",
        "ppo.sampling.max_new_tokens=4", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with pytest.raises(
        RewardFunctionError, match=r"^reward function killed ended its process \(signal SIGKILL\)"
    ) as error:
        run(compose(words))
    assert error.value.exit_code == 6


@pytest.mark.parametrize("isolate", [True, False])
def test_case_51_a_function_that_changes_its_arguments_changes_neither_rows_nor_retries(scorer, isolate):
    steps = ["look"]
    with pytest.raises(RewardFunctionError, match=r"sample 2 of 4: prompt 'prompt 2', completion 'odd' \(2 tries\)"):
        scores(scorer("changes", isolate=isolate, retries=1), steps=steps)
    assert steps == ["look"]


def test_case_51_a_fork_that_returns_does_not_answer(scorer):
    judge = scorer("forks")
    assert [scores(judge, ["good"]), scores(judge, ["bad"])] == [[1.0], [1.0]]
