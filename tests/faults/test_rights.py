"""A config file writes below the run's folder, names no address, reads no environment, and has a bounded size; secrets
stay where they are."""

import json
import os
import shlex
import socket
import subprocess
import sys
from urllib.parse import quote

import pytest
import yaml
from omegaconf import OmegaConf

from rlhf_lightning.config.compose import compose, config_text, load_config
from rlhf_lightning.console import redaction
from rlhf_lightning.console.redaction import known, redact, redact_text, remember
from rlhf_lightning.errors import ConfigError
from tests.gates.gate_sources import ROOT
from tests.support.hostile_rights import CONFIGS, GROWS, LOGGERS

CANARY = "k3pt-f0r-me"
# Every connection is noted; what may run only says with which config it would.
DRIVER = """
import json, os, runpy, socket, sys, types
def noted(call):
    def note(*arguments, **named):
        print(arguments, file=open("CONNECTED", "a"))
        return call(*arguments, **named)
    return note
for name in ("getaddrinfo", "create_connection"):
    setattr(socket, name, noted(getattr(socket, name)))
socket.socket.connect = noted(socket.socket.connect)
pipeline = types.ModuleType("rlhf_lightning.stages.pipeline")
pipeline.run = lambda config: print("RUN" + json.dumps(config, default=str))
sys.modules["rlhf_lightning.stages.pipeline"] = pipeline
runpy.run_path(sys.argv[1], run_name="__main__")
"""
# What a file may do: `resolved` must be the value at the key.
ALLOWED = {
    "below": ("sft: {output: '${run_dir}/mine'}", "sft.output", "RUN_DIR/mine"),
    "relative": ("sft: {output: runs/mine/x/../y}", "sft.output", "runs/mine/x/../y"),
    "own_root": ("output_root: elsewhere", "output_root", "elsewhere"),
    "read": ("data: {prompts: OUTSIDE/kept}", "data.prompts", "OUTSIDE/kept"),
    "read_above": ("evaluate: {policies: {x: ../model}}", "evaluate.policies.x", "../model"),
    "hub": ("model: {path: owner/name}", "model.path", "owner/name"),
    "job": ("name: '${oc.env:SLURM_JOB_ID}'", "name", "17"),
    "stop": ("sft: {data: {max_length: 99}}\nx: {stop: ['/a', 'b://', '~']}", "x.stop.1", "b://"),
    "created": ("x: \"${oc.create:'{a: 1}'}\"", "x.a", 1),
    "infinite": ("checkpoint: {every_n_minutes: .inf}", "checkpoint.every_n_minutes", float("inf")),
    "logger": (
        "logger: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: '${run_dir}', name: a/b}",
        "logger.name",
        "a/b",
    ),
}
# Words of the command beside what a file says, that allow it.
TYPED = {
    "folder": ("sft: {output: OUTSIDE/model}", "sft.output=OUTSIDE/model"),
    "dict": ("x: {dirpath: OUTSIDE}", "x={dirpath: OUTSIDE}"),
    "list": ("x: {dirpath: [OUTSIDE]}", "x.dirpath=[OUTSIDE]"),
    "repeated": ("y: {dirpath: '${x.dirpath}'}", "+x.dirpath=OUTSIDE"),
    "below_a_typed_root": ("sft: {output: '${output_root}/x'}", "output_root=OUTSIDE/runs"),
    "variable": ("x: '${oc.env:CANARY}'", "x=${oc.env:CANARY}"),
    "wandb": ("logger: {_target_: lightning.pytorch.loggers.WandbLogger}", f"logger._target_={LOGGERS}.WandbLogger"),
    "address": ("data: {prompts: 'https://host/x'}", "data.prompts=https://host/x"),
}  # fmt: skip


# The least that is composed as the command composes, so that many can be asked.
SMALL = """
defaults: [base, _self_, experiment: null, override hydra/job_logging: rlhf_lightning]
logger: null
callbacks: null
"""


def seen(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with the stranger's files, the folder OUTSIDE beside it, and a listener."""
    top = tmp_path_factory.mktemp("rights")
    inside, outside = top / "inside", top / "outside"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    (inside / "runs").mkdir(parents=True)
    (inside / "runs" / "link").symlink_to(outside)
    (inside / "kept.txt").write_text("mine")
    (top / "packages" / "wandb").mkdir(parents=True)
    (top / "packages" / "wandb" / "__init__.py").touch()  # as if it were installed; nothing is logged here
    experiments = inside / "conf" / "experiment"
    experiments.mkdir(parents=True)
    (inside / "conf" / "small.yaml").write_text(SMALL)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = str(listener.getsockname()[1])
        allowed = {f"allowed_{name}": text for name, (text, *_) in ALLOWED.items()}
        typed = {f"typed_{name}": text for name, (text, _) in TYPED.items()}
        for name, text in (CONFIGS | allowed | typed).items():
            text = text.replace("OUTSIDE", str(outside)).replace("PORT", port)
            content = f"# @package _global_\n{text}\n".encode("utf-8", "surrogateescape")
            (experiments / f"{name}.yaml").write_bytes(content)
        yield inside, outside, listener


@pytest.fixture(scope="module")
def answers(place):
    inside, outside, _ = place
    base = [f"--config-dir={inside / 'conf'}", "stage=sft", "logger=none"]
    small = [base[0], "--config-name=small"]
    commands = {name: [*small, f"experiment={name}"] for name in CONFIGS}
    commands |= {f"allowed_{name}": [*base, f"experiment=allowed_{name}"] for name in ALLOWED}
    for name, (_, word) in TYPED.items():
        commands[f"typed_{name}"] = [*small, f"experiment=typed_{name}", word.replace("OUTSIDE", str(outside))]
        commands[f"refused_{name}"] = [*small, f"experiment=typed_{name}"]
    commands["typed_for_reading"] = [*small, "experiment=history_over_the_data", f"model.path={outside / 'kept'}"]
    commands["long_line"] = ["stage=sft", f"+x={'[' * 3000}{']' * 3000}"]
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    environment |= {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{inside.parent / 'packages'}",
        "CANARY": CANARY,
        "SLURM_JWT": CANARY,
        "SLURM_JOB_ID": "17",
    }
    before = seen(inside), seen(outside)
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, str(ROOT / "tests" / "support" / "commands.py")], cwd=inside,
        env=environment, text=True, input=json.dumps(list(commands.values())), capture_output=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout), strict=True)), before


def resolved(answer, key):
    assert answer["code"] in (0, None), answer["err"]
    config = json.loads(answer["out"].partition("RUN")[2])
    value = config
    for name in key.split("."):
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value, config


@pytest.mark.parametrize("name", [*(name for name in CONFIGS if name not in GROWS), "typed_for_reading"])
def test_case_57_what_only_a_command_line_may_do_is_refused_in_a_file(answers, name):
    answer = answers[0][name]
    assert answer["code"] == 2, answer["err"] + answer["out"]
    assert answer["err"].startswith("ConfigError:") and len(answer["err"].splitlines()) <= 24
    assert ("file" in answer["err"] or "hydra." in answer["err"]) and "RUN" not in answer["out"]


@pytest.mark.parametrize("name", [*GROWS, "long_line"])
def test_case_69_a_config_that_grows_without_end_is_refused_within_seconds(answers, name):
    answer = answers[0][name]
    assert answer["code"] == 2, answer["err"] + answer["out"]
    assert answer["err"].startswith("ConfigError:") and len(answer["err"].splitlines()) <= 8
    assert len(answer["err"]) < 1000 and answer["cpu"] < 3


def test_case_57_nothing_is_connected_written_or_shown_by_what_is_refused(place, answers):
    inside, outside, listener = place
    everything, before = answers
    assert not (inside / "CONNECTED").exists()
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert seen(outside) == before[1]
    assert seen(inside) == before[0]
    assert not [name for name, answer in everything.items() if CANARY in answer["err"]]
    assert [name for name, answer in everything.items() if CANARY in answer["out"]] == ["typed_variable"]


@pytest.mark.parametrize("name", ALLOWED)
def test_case_57_a_file_may_write_below_the_folder_of_the_run_and_read_anywhere(place, answers, name):
    _, key, expected = ALLOWED[name]
    value, config = resolved(answers[0][f"allowed_{name}"], key)
    if isinstance(expected, str):
        expected = expected.replace("OUTSIDE", str(place[1])).replace("RUN_DIR", config["run_dir"])
    assert value == expected


@pytest.mark.parametrize("name", [name for name in TYPED if name not in ("repeated", "below_a_typed_root")])
def test_case_57_what_a_file_may_not_do_is_refused_with_the_words_that_allow_it(place, answers, name):
    answer = answers[0][f"refused_{name}"]
    assert answer["code"] == 2, answer["err"]
    words = answer["err"].replace("\n  ", " ").partition("or add ")[2].partition(" to the command")[0]
    key = shlex.split(words)[0].partition("=")[0]
    assert key.split(".")[-1] in TYPED[name][1] and key.split(".")[0] in TYPED[name][1]
    resolved(answers[0][f"typed_{name}"], "run_dir")


@pytest.mark.parametrize("name", TYPED)
def test_case_57_what_is_typed_is_allowed(answers, name):
    resolved(answers[0][f"typed_{name}"], "run_dir")


@pytest.fixture
def secret(monkeypatch):
    """A variable that is called like nothing in particular; what a test lets be remembered is forgotten again."""
    monkeypatch.setattr("rlhf_lightning.console.redaction._remembered", set())
    monkeypatch.setenv("MY_DATABASE", "s3cret/of two\nlines")
    monkeypatch.setenv("PIN", "1234")
    return os.environ["MY_DATABASE"]


def test_case_65_what_the_environment_gave_is_hidden_wherever_it_stands(secret):
    config = compose(
        ["stage=sft", "+x.note='${oc.env:MY_DATABASE}'", "+x.again='saw ${x.note}'", "+x.pin='${oc.env:PIN}'"]
    )
    assert config["x"]["note"] == secret and config["x"]["pin"] == "1234"
    text = config_text(config)
    assert "s3cret" not in text and "1234" not in text
    assert yaml.safe_load(text)["x"] == {"note": "***", "again": "saw ***", "pin": "***"}


@pytest.mark.parametrize("spelled", [str, repr, json.dumps, quote, lambda text: text.splitlines()[0]])
def test_case_65_a_secret_is_hidden_in_messages_however_it_is_spelled(secret, spelled):
    compose(["stage=sft", "+x.note='${oc.env:MY_DATABASE}'"])
    told = redact_text(f"no table at {spelled(secret)}, and http://me:other@host")
    assert "s3cret" not in told and told.endswith("http://me:***@host") and told.startswith("no table at ")


def test_case_65_what_a_variable_of_a_job_or_a_place_holds_is_no_secret(secret, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    monkeypatch.setenv("HOME", "/users/somebody")
    compose(["stage=sft", "+x.job='${oc.env:SLURM_JOB_ID}'", "+x.place='${oc.env:HOME}'"])
    assert redact_text("1234567 in /users/somebody") == "1234567 in /users/somebody"


@pytest.mark.parametrize("word", ["+my.api_key=abcdefg1", "+my={api_key: abcdefg1}", "+my.list=[{api_key: abcdefg1}]"])
def test_case_65_no_message_repeats_a_secret_of_the_command_line(secret, word):
    with pytest.raises(ConfigError) as told:
        compose(["stage=sft", word, "sft.max_epochs=abcdefg1"])
    assert "abcdefg1" not in redact_text(str(told.value))


@pytest.mark.parametrize(
    "word", ["+api_key=abcdefg1", "+my={api_key: abcdefg1}", "+my.list=[{token: abcdefg1}]", "+my.url=http://me:abcdefg1@host",
             "+my.api_key=abc", "+my.api_key=abcdefg1,abcdefg2"],
)  # fmt: skip
def test_case_65_a_sweep_with_a_secret_is_refused_however_it_is_asked_for(secret, tmp_path, word):
    from rlhf_lightning.config.hydra_loader import check_sweep
    from rlhf_lightning.config.typed import Typed

    Typed([word])
    with pytest.raises(ConfigError, match="a sweep prints and saves its command line") as told:
        check_sweep(tmp_path, ["seed=1,2", word])
    assert "abc" not in str(told.value)
    check_sweep(tmp_path, ["seed=1,2", "+my.api_key='${oc.env:MY_DATABASE}'", "+my={token: '${oc.env:MY_DATABASE}'}"])


@pytest.mark.parametrize("flag", ["-m", "--multi", "hydra.mode=MULTIRUN"])
def test_case_65_a_sweep_with_a_secret_writes_and_prints_nothing(tmp_path, flag):
    words = [flag, "+my={api_key: abcdefg1}", "stage=sft"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and "a sweep prints" in done.stderr, done.stderr
    assert "abcdefg1" not in done.stderr + done.stdout and not list(tmp_path.iterdir())


def test_case_65_another_process_hides_what_this_one_knows(secret):
    compose(["stage=sft", "+x.note='${oc.env:MY_DATABASE}'", "+x.pin='${oc.env:PIN}'"])
    handed = json.loads(json.dumps(known()))
    redaction._remembered.clear()
    assert redact_text(secret) == secret
    remember(handed)
    assert redact_text(secret) == "***" and redact({"pin": "1234", "seed": "1234"}) == {"pin": "***", "seed": "1234"}


def test_case_57_the_file_of_the_machine_may_do_what_the_command_line_may(tmp_path, monkeypatch, secret):
    monkeypatch.setattr("rlhf_lightning.config.locations.CONF_DIR", tmp_path)
    (tmp_path / "local").mkdir()
    local = "# @package _global_\nx: {dirpath: /data, note: '${oc.env:MY_DATABASE}', here: '${y}/x'}\n"
    (tmp_path / "local" / "default.yaml").write_text(local)
    tree = OmegaConf.create(local)
    del tree.x["here"]
    assert load_config(tree)["x"] == {"dirpath": "/data", "note": secret}
    tree.x.dirpath = "/other"
    with pytest.raises(ConfigError, match=r"x\.dirpath=/other"):
        load_config(tree)
    with pytest.raises(ConfigError, match=r"x\.here=/data/x"):  # what it repeats may come from a stranger
        load_config(OmegaConf.create({"y": "/data", "x": {"here": "${y}/x"}}), ["y=/data"])


def test_case_57_omegaconf_behaves_as_ever_outside_of_a_config_of_ours(secret):
    compose(["stage=sft"])
    chain = {f"a{i}": f"${{a{i - 1}}}" for i in range(1, 40)}
    tree = OmegaConf.create({"a0": "${oc.env:MY_DATABASE}", **chain})
    assert tree.a39 == secret == tree.a0


def test_case_57_what_every_command_composes_needs_no_right():
    assert load_config(OmegaConf.create({"a": "x:y", "b": "12:30", "c": ["e-5", "a/b"], "d": "00:12:00:00"}))


def test_case_72_numbers_that_are_none_are_refused_on_the_command_line_too():
    for word in ("checkpoint.every_n_minutes=nan", "+x=[{y: nan}]", "sft.optimizer.lr=inf", "+x=-inf"):
        with pytest.raises(ConfigError, match="must be a finite number"):
            compose(["stage=sft", word])
    assert compose(["stage=ppo", "ppo.settings.max_approx_kl=inf"])["ppo"]["settings"]["max_approx_kl"] == float("inf")
