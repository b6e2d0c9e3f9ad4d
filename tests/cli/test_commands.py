"""Commands beside training, as far as no model is needed; tests/end_to_end/test_cli.py has the others."""

import json
import re
import shlex

import pytest

from rlhf_lightning.checkpoint.serving import vllm_command
from rlhf_lightning.cli.commands import COMMANDS
from rlhf_lightning.config.key_help import page
from rlhf_lightning.config.locations import CONF_DIR, help_text
from rlhf_lightning.errors import CheckpointError
from tests.support import commands

STAGES = sorted(path.stem for path in (CONF_DIR / "stage").glob("*.yaml"))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help_of_its_own(name):
    done = commands.answer([name, "--help"])
    assert done["code"] == 0
    assert done["out"].startswith(f"usage: rlhf-lightning {name}")


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_of_a_stage_shows_a_value_for_each_key_that_it_names(stage):
    named = help_text(stage).partition("Change first: ")[2].strip().split(", ")
    lines = page(stage).splitlines()
    shown = [line.strip().partition("=")[0] for line in lines if re.match(r"  \w[\w.]*=.", line)]
    assert named == shown
    assert max(map(len, lines[2:])) <= 120


def test_the_help_of_a_stage_tells_meaning_and_range():
    text = " ".join(page("ppo").split())
    assert "kl.target=6.0 nats per response" in text and "above 0 ppo.critic=shared_trunk" in text
    assert "tokens of prompt and answer together, EOS included; at least 2" in " ".join(page("sft").split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evaluate", "model.path=x"], "write stage=evaluate"),
        (["chatt", "runs/ppo"], "Did you mean chat?"),
        (["score", "reward", "no_file.jsonl"], "no_file.jsonl: no such file"),
        (["score", "reward", "no_file.jsonl", "--batch-size", "0"], "--batch-size=0: must be at least 1"),
        (["generate", "policy", "no_file.jsonl", "-n", "0"], "--samples 0: must be at least 1"),
        (["compare", "a", "a", "--prompts", "p", "--judge", "m.f"], "both folders are the same"),
        (["compare", "a", "b", "--prompts", "p"], "nothing judges"),
        (["runs", "no_folder"], "no_folder: no such folder"),
        (["runs", "compare", "a"], "at least two runs"),
        (["card", "no_folder"], "has no provenance.json"),
        (["new", "1st"], "cannot be the name of a Python package"),
        (["serve", "no_folder"], "no config.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_says_what_to_do(words, says):
    done = commands.answer(words)
    assert done["code"] in (2, 3, 5) and says in done["err"]
    assert "Traceback" not in done["err"] and len(done["err"].splitlines()) <= 4


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a"}, "rows.jsonl:2: "),
        ({"prompt": "a", "completion": "b", "score": 1.0}, "rows.jsonl:2: score: is there already"),
        ({"text": "a"}, "rows.jsonl:2: has no answer to score"),
        ({"prompt": "a", "completions": []}, "rows.jsonl:2: completions: has no answers; fill it or delete the row"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named_before_a_model_is_loaded(row, says, tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, row]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    done = commands.answer(["score", "no_folder", str(tmp_path / "rows.jsonl")])
    assert done["code"] == 3 and says in done["err"]


def test_serve_prints_what_vllm_is_asked_for(tmp_path):
    for name, kind in (("policy", "LlamaForCausalLM"), ("judge", "LlamaForSequenceClassification")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": [kind]}))
    words = shlex.split(commands.answer(["serve", str(tmp_path / "policy"), "--port", "9"])["out"].splitlines()[0])
    assert words[:3] == ["vllm", "serve", str(tmp_path / "policy")] and words[-2:] == ["--port", "9"]
    assert vllm_command(tmp_path / "judge", "judge")[-6:-1] == [
        "--runner", "pooling", "--convert", "classify", "--pooler-config"
    ]  # fmt: skip
    assert json.loads(vllm_command(tmp_path / "judge", "judge")[-1]) == {"use_activation": False}
    training = ["serve", str(tmp_path / "policy"), "--training", "--dtype", "bfloat16", "--lora-rank", "12"]
    line, _, hint = commands.answer(training)["out"].splitlines()
    assert line.startswith(
        "VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_NO_USAGE_STATS=1 vllm serve "
    )
    assert line.endswith("--dtype bfloat16 --enable-lora --max-lora-rank 16") and "processed_logprobs" in line
    assert hint == "rollout=server 'rollout.urls=[http://127.0.0.1:8000]'"
    assert "add --training" in commands.answer(["serve", str(tmp_path / "policy"), "--lora-rank", "8"])["err"]
    asked = commands.answer(["serve", str(tmp_path / "policy"), "--run", "--vllm", "no_program"])
    assert asked["code"] == 2 and "--vllm PROGRAM" in asked["err"] and len(asked["err"].splitlines()) == 2
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        vllm_command(tmp_path, "nothing")
