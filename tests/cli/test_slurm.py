"""The batch script for Slurm, and what a run asks of the scheduler; tests/end_to_end/test_nodes.py runs both."""

import re
import shlex
import signal
import subprocess

import pytest

from rlhf_lightning.cli.requeue import requeue
from tests.gates.gate_docs import blocks
from tests.gates.gate_docs import commands as commands_of
from tests.gates.gate_sources import ROOT
from tests.support import commands

RUN = ["stage=ppo", "scorer=judge", "trainer=fsdp2", "trainer.devices=8", "trainer.num_nodes=2"]


def lines(*words):
    done = commands.answer(["slurm", *words])
    assert done["code"] in (None, 0), done["err"]
    return done["out"].splitlines()


def test_a_script_asks_for_the_machines_and_processes_of_the_config_and_can_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *found = lines(*RUN, "run_dir=runs/my run", "ppo.sampling.stop=['\"a b\"']")
    assert first == "#!/bin/bash"
    head = [line.removeprefix("#SBATCH ") for line in found if line.startswith("#SBATCH ")]
    assert head == [
        "--job-name='my run'", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--signal=USR1@300",
        "--open-mode=append", f"--chdir={tmp_path}", "--requeue",
    ]  # fmt: skip
    words = shlex.split(found[-1])
    assert words[:2] == ["srun", "--kill-on-bad-exit=0"]
    assert words[-8:] == [*RUN, "run_dir=runs/my run", "ppo.sampling.stop=['\"a b\"']", "resume=auto"]


def test_the_page_shows_the_script_of_its_command(tmp_path):
    page = blocks((ROOT / "docs" / "scaling.md").read_text())
    [(_, *words)] = [words for block in page for words in commands_of(block.body) if words[:1] == ["slurm"]]
    shown = next(block.body for block in page if block.body.startswith("#!/bin/bash"))
    file = tmp_path / "job.sh"
    lines(*words[:-1], str(file))
    text = re.sub(r"--chdir=.*", "--chdir=FOLDER", file.read_text().rstrip())
    assert re.sub(r"bad-exit=0 .* stage", "bad-exit=0 PYTHON train.py stage", text) == shown.rstrip()


def test_a_script_takes_what_a_cluster_wants(tmp_path):
    file = tmp_path / "job.sh"
    more = ["--partition", "gpu", "--account", "us", "--time", "1:00:00", "--cpus-per-task", "4", "--notice", "60"]
    more += ["--line", "#SBATCH --constraint=a100", "--line", "module load cuda", "--output", str(file)]
    assert lines(*RUN[:2], *more, "trainer.accelerator=cpu") == [f"{file}: submit with sbatch {file}"]
    text = file.read_text()
    head, _, body = text.partition("\n# USR1")
    for line in ("partition=gpu", "account=us", "time=1:00:00", "cpus-per-task=4", "signal=USR1@60", "nodes=1",
                 "constraint=a100"):  # fmt: skip
        assert f"\n#SBATCH --{line}" in head
    assert "gpus" not in text and "\nmodule load cuda\nsrun " in body and " --cpus-per-task=4 " in body
    assert shlex.split(body)[-2].startswith("run_dir=runs/ppo/")  # the same in each job
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    assert commands.answer(["slurm", *RUN, "--output", str(file)])["code"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["stage=poo"], "Did you mean ppo?"),
        (["stage=ppo", "scorer=judge", "trainer.devices=auto"], "trainer.devices=8"),
        (["stage=ppo", "scorer=judge", "ppo.loss.clip_range=-1"], "clip_range"),
        (["stage=ppo", "scorer=judge", "--notice", "0"], "--notice=0: must be at least 1"),
        (["stage=sft", "logger=wandb", "+logger.wandb.api_key=abcdefg"], "into an environment variable"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_command_that_could_not_run_gets_no_script(words, says):
    done = commands.answer(["slurm", *words])
    assert done["code"] == 2 and says in done["err"] and "Traceback" not in done["err"] and not done["out"]
    assert "abcdefg" not in done["err"]


GOES_ON = ("auto", ["stage=ppo", "run_dir=mine"])
IN_JOB = {"SLURM_JOB_ID": "17"}
STEP = {**IN_JOB, "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "signum", "command", "asked"),
    [
        (IN_JOB, signal.SIGUSR1, GOES_ON, "requeue 17\n"),
        (IN_JOB, signal.SIGUSR2, GOES_ON, "requeue 17\n"),
        ({**IN_JOB, "SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "0"}, signal.SIGUSR1, GOES_ON, "requeue 16_0\n"),
        ({**STEP, "SLURM_PROCID": "0"}, signal.SIGUSR1, GOES_ON, "requeue 17\n"),
        ({**STEP, "SLURM_PROCID": "1"}, signal.SIGUSR1, GOES_ON, None),
        ({**IN_JOB, "NODE_RANK": "1"}, signal.SIGUSR1, GOES_ON, None),
        ({}, signal.SIGUSR1, GOES_ON, None),
        (IN_JOB, signal.SIGTERM, GOES_ON, None),
        (IN_JOB, signal.SIGUSR1, ("none", GOES_ON[1]), None),
        (IN_JOB, signal.SIGUSR1, ("auto", ["stage=ppo"]), None),
    ],
)
def test_the_first_rank_of_a_job_that_would_go_on_asks_for_it_once(
    tmp_path, monkeypatch, environment, signum, command, asked
):
    file = tmp_path / "asked"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {file}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told = requeue(signum, *command)
    assert (file.read_text() if file.exists() else None) == asked
    if asked:
        assert told == f"job {asked.split()[1]} is put back into the queue"
    elif command != GOES_ON:
        assert told == "job 17 is not put back into the queue: that needs resume=auto and run_dir=FOLDER"
    else:
        assert told == ""


@pytest.mark.parametrize(("program", "says"), [("echo denied >&2; exit 1", "denied"), (None, "No such file")])
def test_a_scheduler_that_does_not_take_the_job_back_is_told(tmp_path, monkeypatch, program, says):
    if program:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if program else str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    told = requeue(signal.SIGUSR1, *GOES_ON)
    assert told.startswith("job 17 is not put back into the queue: ") and says in told
