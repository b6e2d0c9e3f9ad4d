"""A server that is started with the run: how that is done, what is said when it ends, and that it ends with the run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rlhf_lightning.errors import ConfigError, RolloutError
from rlhf_lightning.rollout import Sampling, ServerEngine
from rlhf_lightning.rollout.server import keeper, process
from rlhf_lightning.rollout.server.process import free_port
from tests.gates.gate_sources import ROOT
from tests.support import tiny

SAMPLING = Sampling(max_new_tokens=4)


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids, seconds=5.0):
    end = time.monotonic() + seconds
    while any(map(runs, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(runs, pids))


@pytest.fixture
def place(tmp_path):
    """A folder with a policy, and a program to serve it."""
    tiny.policy().save_pretrained(tmp_path / "model")
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.support.stub_vllm "$@"\n')
    program.chmod(0o755)
    return tmp_path


def engine(place, *words, **options):
    given = {"retries": 0, "ram_disk": False, "deadline": 20.0, **options}
    return ServerEngine(start=True, program=[str(place / "vllm"), *words], folder=place / "server", **given)


def policy(place, lora=False):
    made = tiny.adapted(tiny.policy(), lora)
    made.config.name_or_path = made.name_or_path = str(place / "model")
    return made


def started(place):
    return json.loads((place / "model" / "started.json").read_text())


def test_a_server_is_started_for_training_with_the_first_weights_and_ends_when_it_is_closed(place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "7")
    made = engine(place, "--tensor-parallel-size", "2")
    made.sync(policy(place, lora=True), (1,), 0, 5)
    rollout = made.generate(tiny.prompts("we left", "good"), SAMPLING)
    assert rollout.response_ids.tolist() == [[1], [1]] and rollout.weight_version.tolist() == [5, 5]
    record = started(place)
    told = " ".join(record["words"])
    assert told.startswith(f"serve {place / 'model'} --served-model-name policy --host 127.0.0.1 --port ")
    for words in ("--logprobs-mode processed_logprobs", "--dtype float32", "--generation-config vllm",
                  "--no-enable-prefix-caching", "--enable-lora --max-lora-rank 8", "--tensor-parallel-size 2",
                  '--weight-transfer-config {"backend": "rlhf_lightning"}'):  # fmt: skip
        assert words in told
    assert record["environment"]["VLLM_SERVER_DEV_MODE"] == "1" and "WORLD_SIZE" not in record["environment"]
    assert all(map(runs, record["pids"]))
    made.close()
    assert gone(record["pids"]) and not (place / "server" / "weights").exists()


def test_a_server_that_is_killed_ends_the_run_with_its_last_words(place):
    made = engine(place)
    made.sync(policy(place), (1,), 0, 1)
    pids = started(place)["pids"]
    os.kill(pids[0], signal.SIGKILL)
    assert gone(pids)  # its child too
    with pytest.raises(
        RolloutError, match=r"the server has ended \(signal 9\)\. The end of .*server\.log:\nthe server begins"
    ):
        made.generate(tiny.prompts("good"), SAMPLING)
    made.close()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("die", r"has ended \(exit code 3\)\. .*\n.*\nand says \\x1b"),
        ("sleep", r"did not start in time; raise rollout\.deadline"),
    ],
)
def test_a_server_that_does_not_come_up_is_told_with_its_log(how, says, place, monkeypatch):
    monkeypatch.setenv("STUB_VLLM", how)
    monkeypatch.setattr(process, "ENDING_SECONDS", 0.5)
    made = engine(place, deadline=1.5)
    with pytest.raises(RolloutError, match=says):
        made.sync(policy(place), (1,), 0, 1)
    made.close()
    assert gone(started(place)["pids"])


def test_a_server_ends_with_a_run_that_is_killed(place):
    code = (  # what `ServerProcess` does, without the seconds of importing torch
        "import os, subprocess, sys, time\n"
        "kept = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE, start_new_session=True)\n"
        "end = time.monotonic() + 20\n"
        "while not os.path.exists(sys.argv[4] + '/started.json') and time.monotonic() < end: time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)"
    )
    words = [keeper.__file__, str(place / "vllm"), "serve", str(place / "model"), "--port", str(free_port())]
    ended = subprocess.run([sys.executable, "-c", code, *words], timeout=30, stdout=subprocess.DEVNULL)
    assert ended.returncode == -signal.SIGKILL and gone(started(place)["pids"])


def test_what_cannot_be_started_is_refused(place):
    made = ServerEngine(start=True, program="no-such-vllm", folder=place)
    with pytest.raises(ConfigError, match=r"rollout\.program=no-such-vllm: there is no such program"):
        made.sync(policy(place), (1,), 0, 1)
    with pytest.raises(ConfigError, match=r"rollout\.start=true: the policy comes from .* no folder"):
        engine(place).sync(tiny.policy(), (1,), 0, 1)


def test_the_first_error_of_a_long_log_is_told_beside_its_end(tmp_path):
    lines = [
        "(a) WARNING can cause errors like `OSError: [Errno 24]`",
        "(b) ERROR [worker.py:9] ValueError: no memory left",
    ]
    lines += [f"line {n}" for n in range(30)] + ["RuntimeError: see above"]
    words = [sys.executable, "-c", "print(" + repr("\n".join(lines)) + ")"]
    server = process.ServerProcess(words, {}, tmp_path / "server.log")
    with pytest.raises(RolloutError) as error:
        server.require(patience=20.0)
    said = str(error.value).splitlines()
    assert said[0].endswith(f"Its first error in {tmp_path / 'server.log'}:")
    assert said[1:3] == ["(b) ERROR [worker.py:9] ValueError: no memory left", f"The end of {tmp_path / 'server.log'}:"]
    assert said[3] == "line 19" and said[-1] == "RuntimeError: see above"
    server.close()
