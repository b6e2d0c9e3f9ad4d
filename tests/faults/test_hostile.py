"""Configs and folders of an attacker are refused: nothing of them runs, and no file is written."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.checkpoint.io import DurableCheckpointIO
from rlhf_lightning.console.redaction import redact
from rlhf_lightning.errors import CheckpointError, DataError, RLHFError
from rlhf_lightning.models import Pretrained
from tests.gates.gate_sources import ROOT
from tests.support import tiny
from tests.support.hostile_files import CONFIGS, IGNORED, REFUSED, Evil, adapter, pickle

SECRET = "s3cret-Zq81xw"
# Command lines that would give a secret away.
LEAKS = {
    "swept": ["-m", "seed=1,2", f"+api_key={SECRET}"],
    "swept_deep": ["--multirun", "seed=1,2", f"+logger.hub_token={SECRET}"],
    "subfolder": ["stage=sft", "hydra.output_subdir=.hydra", f"+api_key={SECRET}"],
    "wrong_type": ["stage=sft", f"+seed.api_key={SECRET}"],
}


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with the attacker's config tree, and the folder OUTSIDE beside it."""
    top = tmp_path_factory.mktemp("hostile")
    inside, outside = top / "inside", top / "outside"
    outside.mkdir()
    for name, text in CONFIGS.items():
        path = inside / "conf" / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# @package _global_\n" + text.replace("OUTSIDE", str(outside)) + "\n")
    primary = "defaults: [train, _self_]\nhydra: {searchpath: ['pkg://evil_package']}\n"
    (inside / "conf" / "shared.yaml").write_text(primary)
    (inside / "evil_package.py").write_text("open('MARKER', 'w').close()\nModel = reward = print\n")
    return inside, outside


@pytest.fixture(scope="module")
def answers(place):
    """What the command line says to each, all asked in one process; and the files there were before and after."""
    inside, outside = place
    commands = {name: [f"--config-dir={inside / 'conf'}", "stage=sft", f"experiment={name}"] for name in CONFIGS}
    commands |= {"search_path": [f"--config-dir={inside / 'conf'}", "--config-name=shared", "stage=sft"], **LEAKS}
    before = files(inside)
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{inside}", "EVIL": "os.system"}
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "tests" / "support" / "commands.py")], cwd=inside, env=environment, text=True,
        input=json.dumps(list(commands.values())), capture_output=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = sorted({*files(inside), *(f"outside/{name}" for name in files(outside))} - set(before))
    return dict(zip(commands, json.loads(done.stdout), strict=True)), written


@pytest.mark.parametrize("name", [*CONFIGS, "search_path"])
def test_case_55_a_hostile_config_is_refused(answers, name):
    answer = answers[0][name]
    assert answer["code"] == 2, answer["err"]
    assert answer["err"].startswith("ConfigError:") and "Traceback" not in answer["err"]
    assert len(answer["err"].splitlines()) <= 24
    assert answer["heavy"] == []


def test_case_55_nothing_of_the_hostile_configs_ran_and_no_file_was_written(answers):
    assert answers[1] == []


@pytest.mark.parametrize("name", LEAKS)
def test_case_55_a_command_that_would_save_a_secret_is_refused_without_repeating_it(answers, name):
    answer = answers[0][name]
    assert answer["code"] == 2, answer["err"]
    assert SECRET not in answer["err"] + answer["out"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.policy().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def attack(model, tmp_path, monkeypatch):
    """A copy of a good model, to be made a bad one; the working folder is beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "model")
    return tmp_path / "model"


def load(folder):
    recipe = Pretrained(str(folder))
    recipe.tokenizer()
    return recipe.causal_lm()


def test_the_model_loads_before_it_is_made_hostile(attack):
    load(attack)


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_case_55_a_hostile_model_folder_is_refused(attack, spoil):
    spoil(attack)
    with pytest.raises(CheckpointError, match=attack.name):
        load(attack)
    assert not Path("MARKER").exists()


@pytest.mark.parametrize("spoil", IGNORED, ids=lambda spoil: spoil.__name__)
def test_case_55_code_beside_a_known_model_never_runs(attack, spoil):
    spoil(attack)
    policy = load(attack)
    assert type(policy).__module__.startswith("transformers.")
    policy.generate(**tiny.tokenizer()("the food", return_tensors="pt"), max_new_tokens=1, use_cache=False)
    assert not Path("MARKER").exists()


def test_case_55_an_adapter_brings_no_code(attack):
    adapter(attack)
    with contextlib.suppress(CheckpointError):  # where peft is installed; ignored where it is not
        assert type(load(attack)).__module__.startswith("transformers.")
    assert not Path("MARKER").exists()


@pytest.mark.parametrize("name", ["last.ckpt", "checkpoint/tensors.safetensors", "checkpoint/state.json"])
def test_case_55_a_checkpoint_that_is_a_pickle_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / name
    if "/" in name:
        DurableCheckpointIO().save_checkpoint({"a": tiny.policy().lm_head.weight.detach()}, file.parent)
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        DurableCheckpointIO().load_checkpoint(file if "/" not in name else file.parent)
    assert not Path("MARKER").exists()


TEMPLATES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "attribute_filter": "{{ ((''|attr('__class__'))|attr('__mro__')) [1] | attr('__subclasses__') () }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "changed": "{{ messages.append({'role': 'user', 'content': 'evil'}) }}",
    "endless": "{% for i in range(1000000000) %}x{% endfor %}",
    "import": "{% import 'os' as os %}{{ os.system('touch MARKER') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_case_55_a_chat_template_cannot_leave_its_sandbox(tmp_path, monkeypatch, name):
    from rlhf_lightning.data.rows.turns import render

    monkeypatch.chdir(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    with pytest.raises(DataError):
        render(tokenizer, [{"role": "user", "content": "the food"}])
    assert not Path("MARKER").exists()


def test_the_attacks_would_work_on_an_open_door(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Evil())).close()
    assert Path("MARKER").exists()


def test_secrets_of_the_environment_are_blanked_out_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", SECRET)
    monkeypatch.setenv("HARMLESS", "visible-value")
    told = redact({"url": f"https://{SECRET}@host", "list": [SECRET], "note": "visible-value"})
    assert told == {"url": "https://***@host", "list": ["***"], "note": "visible-value"}


def test_a_secret_that_is_repeated_by_interpolation_is_blanked_out_everywhere():
    told = redact({"logger": {"api_key": SECRET}, "header": {"auth": f"Bearer {SECRET}"}})
    assert told == {"logger": {"api_key": "***"}, "header": {"auth": "Bearer ***"}}


def test_sixty_attacks_are_tried():
    assert len(CONFIGS) + 1 + len(LEAKS) >= 60
    assert len(CONFIGS) + len(LEAKS) + len(REFUSED) + len(IGNORED) + len(TEMPLATES) >= 90
    assert issubclass(CheckpointError, RLHFError)


def test_case_55_secrets_in_lists_in_addresses_and_under_other_spellings_are_hidden():
    told = redact(
        {
            "logger": {"apiKey": "abcdefg1", "api-keys": ["qwertyu1", {"x": "zxcvbnm1"}], "secrets": {"a": "lkjhgf1"}},
            "note": "saw qwertyu1, zxcvbnm1 and lkjhgf1",
            "url": "postgres://me:hunter22@host/db?x=a@b",
            "path": "a:b@c",
            "max_tokens": 5,
        }
    )
    assert told["logger"] == {"apiKey": "***", "api-keys": "***", "secrets": "***"}
    assert told["note"] == "saw ***, *** and ***" and told["url"] == "postgres://me:***@host/db?x=a@b"
    assert told["path"] == "a:b@c" and told["max_tokens"] == 5
