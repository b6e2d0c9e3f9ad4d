"""A console that is closed or full, and a full disk outside of checkpoints (cases 61 and 62)."""

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from rlhf_lightning.callbacks import history
from rlhf_lightning.console import streams as console
from rlhf_lightning.errors import DiskError
from rlhf_lightning.loggers.files import lasting
from tests.support import small_run

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return small_run.prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def calls(tmp_path, monkeypatch):
    (tmp_path / "calls").mkdir()
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))


def full(*given, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


PROGRAM = """
    import logging, sys, time, warnings
    from pathlib import Path
    from rlhf_lightning import signals
    from rlhf_lightning.console.streams import say, unbreakable

    with signals.watched():
        unbreakable()
        logging.basicConfig(stream=sys.stdout, level="INFO")
        assert not sys.stdout.isatty() and sys.stdout.encoding and (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
        with open("data", "w") as data:
            for _ in range(3):
                print("é" * 20_000)
                logging.info("x" * 10_000)
                say("y" * 10_000)
                say("z" * 10_000, sys.stderr)
                warnings.warn("w")
        Path("end").write_text(str(signals.received()))
    print("at the end")
"""
WAYS = {"closed": ">&- 2>&- <&-", "full": ">/dev/full 2>/dev/full", "read only": "1</dev/null 2</dev/null"}


@pytest.fixture
def program(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(PROGRAM))

    def start(redirection="", **more):
        command = ["sh", "-c", f'exec "$0" "$1" {redirection}', sys.executable, str(file)]
        environment = {**os.environ, "PYTHONPATH": str(small_run.ROOT), "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **more)

    return start


@pytest.mark.parametrize("way", WAYS)
def test_case_62_a_console_that_takes_nothing_ends_nothing(program, tmp_path, way):
    assert program(WAYS[way]).wait(timeout=20) == 0
    assert (tmp_path / "end").read_text() == "0"
    assert (tmp_path / "data").read_bytes() == b""  # no file took the place of a closed stream


def test_case_62_a_reader_that_goes_away_leaves_no_word_on_the_other_stream(program, tmp_path):
    with program(stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(40) == b"\\xe9" * 10  # and a terminal without the letter shows it as an escape
        process.stdout.close()
        errors = process.stderr.read().splitlines()
    assert process.returncode == 0 and (tmp_path / "end").is_file()
    assert {line for line in errors if b"warn" not in line.lower()} == {b"z" * 10_000}


def test_case_62_a_console_that_is_held_does_not_hold_a_run_that_is_told_to_stop(program, tmp_path):
    with program(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:  # a pipe that nobody reads
        time.sleep(0.5)
        assert not (tmp_path / "end").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
    assert (tmp_path / "end").read_text() == str(int(signal.SIGTERM))


def test_case_62_the_command_trains_to_its_end_without_a_console(words, tmp_path):
    """Its reward function, which runs in a process of its own, prints too."""
    function = "tests.support.hostile_rewards.says"
    command = [sys.executable, "train.py", *words, f"run_dir={tmp_path / 'run'}", "scorer.isolate=true"]
    command += [f"scorer.function={function}", "ppo.rollouts=1"]
    read, write = os.pipe()
    os.close(read)
    with open("/dev/full", "w") as errors:
        process = subprocess.Popen(command, cwd=small_run.ROOT, stdout=write, stderr=errors)
    os.close(write)
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "ppo" / "model.safetensors").is_file()


@pytest.fixture
def log(tmp_path):
    handler = console.LogFile(str(tmp_path / "train.log"))
    handler.setFormatter(console.Formatter("%(message)s"))
    return lambda text: handler.handle(logging.makeLogRecord({"msg": text}))


def test_case_61_a_log_on_a_full_disk_loses_lines_after_one_warning(log, tmp_path, monkeypatch, capsys):
    write = os.write

    def half(descriptor, data):
        write(descriptor, data[:3])
        full()

    log("first")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        log("lost")
        log("lost too")
    log("é last")
    assert (tmp_path / "train.log").read_text() == "first\né last\n"
    [warning] = capsys.readouterr().err.splitlines()
    assert (
        warning
        == f"{tmp_path / 'train.log'}: not all that is logged is there (No space left on device); the run goes on"
    )


@pytest.mark.parametrize("make", [os.symlink, os.link, lambda _, log: os.mkfifo(log)], ids=["symlink", "link", "pipe"])
def test_case_61_a_log_is_not_written_through_a_link_and_waits_for_no_reader(log, tmp_path, make, capsys):
    (tmp_path / "other").write_text("of someone else")
    make(tmp_path / "other", tmp_path / "train.log")
    log("a line")
    assert (tmp_path / "other").read_text() == "of someone else"
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'train.log'}: not all that is logged is there")


def test_case_61_events_that_the_disk_does_not_take_are_lost_after_one_warning(tmp_path, monkeypatch, caplog):
    logger = lasting(TensorBoardLogger(tmp_path, name="ppo", version=""))
    logger.log_metrics({"a": 1.0}, 0)
    logger.experiment.flush()
    [events] = (tmp_path / "ppo").iterdir()
    size = events.stat().st_size
    monkeypatch.setattr(LocalFileSystem, "append", full)
    monkeypatch.setattr("lightning.pytorch.loggers.tensorboard.save_hparams_to_yaml", full)
    for step in range(50):
        logger.log_metrics({"a": 1.0}, step)
    logger.experiment.flush()
    logger.finalize("success")
    assert events.stat().st_size == size
    assert "no more is written for TensorBoard (No space left on device)" in caplog.messages[0]
    assert len(caplog.messages) == 2  # the other one is of hparams.yaml


def test_case_61_a_folder_that_cannot_be_made_leaves_the_trainer_without_tensorboard(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    assert lasting(TensorBoardLogger(tmp_path / "tensorboard", name="ppo", version="")) is False
    assert "training goes on" in caplog.text


def rows(tmp_path):
    return (tmp_path / "run" / "history" / "ppo.csv").read_text().splitlines()


def fails_in_rollouts(monkeypatch, *steps):
    """The disk takes half of each history row of these rollouts."""
    append = console.append

    def half(path, text):
        if text.partition(",")[0] in map(str, steps):
            full()
        append(path, text)

    monkeypatch.setattr(history, "append", half)


def test_case_61_a_run_on_a_full_disk_goes_on_if_it_is_told_to_and_its_rows_come_later(words, tmp_path, monkeypatch):
    fails_in_rollouts(monkeypatch, 2, 3)
    seen = []
    monkeypatch.setattr(history, "rank_zero_warn", seen.append)
    monkeypatch.setattr(LocalFileSystem, "append", full)
    tensorboard = [word for word in words if word != "logger=none"]
    small_run.go(tensorboard, tmp_path / "run", "checkpoint.on_error=warn")
    assert [row.partition(",")[0] for row in rows(tmp_path)] == ["step", "1", "2", "3", "4"]
    [warning] = seen
    assert warning.startswith(
        f"{tmp_path / 'run' / 'history' / 'ppo.csv'}: cannot be written (No space left on device)"
    )


def test_case_61_a_row_that_cannot_be_written_ends_the_run_and_leaves_the_file_whole(words, tmp_path, monkeypatch):
    fails_in_rollouts(monkeypatch, 3)
    with pytest.raises(DiskError, match=r"history/ppo\.csv: cannot be written \(No space left on device\)"):
        small_run.go(words, tmp_path / "run")
    assert [row.partition(",")[0] for row in rows(tmp_path)] == ["step", "1", "2"]
    assert [path.name for path in (tmp_path / "run" / "history").iterdir()] == ["ppo.csv"]
