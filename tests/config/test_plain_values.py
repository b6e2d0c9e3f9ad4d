"""Values that a shell takes as they are, on a command line that Hydra reads."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf_lightning.config.compose import compose
from rlhf_lightning.config.plain_values import readable


def value(word):
    return OverridesParser.create().parse_override(readable([word])[0]).value()


@pytest.mark.parametrize(
    "text",
    [
        "a=b.jsonl", "/rows/lr=1e-5/a.jsonl", "a[1].jsonl", "(copy) a.jsonl", "ünï/日本.jsonl", "it's.jsonl",
        'a"b.jsonl', "a#b", "50%&more!.jsonl",
        "a\\'b\\", "Q: {question}\\nA:", "{question}", "[train].jsonl", "trailing\\",
    ],
)  # fmt: skip
def test_a_value_that_hydra_cannot_read_is_text(text):
    assert value(f"data.prompts={text}") == text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("{prompt: question}", {"prompt": "question"}), ("[a.jsonl,b.jsonl]", ["a.jsonl", "b.jsonl"]), ("null", None),
        ("1e-5", 1e-5), ("'a b'", "a b"), ("[a=1.jsonl,b c.jsonl]", ["a=1.jsonl", "b c.jsonl"]),
    ],
)  # fmt: skip
def test_what_hydra_can_read_keeps_its_meaning(text, meant):
    assert value(f"data.prompts={text}") == meant


def test_a_file_of_that_name_is_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a,b.jsonl").touch()
    assert value("data.prompts=a,b.jsonl") == "a,b.jsonl"
    assert value("data.prompts=~/a,b.jsonl") == f"{tmp_path}/a,b.jsonl"
    assert readable(["--multirun", "ppo.optimizer.lr=1e-5,1e-6", "~logger", "'unclosed"]) == [
        "--multirun", "ppo.optimizer.lr=1e-5,1e-6", "~logger", "'unclosed",
    ]  # fmt: skip


def test_columns_templates_and_roles_reach_the_data_of_a_stage():
    words = ["data.prompt_template=Q: {q}", "data.columns={completion: answer}", "data.roles={user: guest}"]
    shape = compose(["stage=sft", "data.demonstrations=a=b.jsonl", *words])["sft"]["data"]["shape"]
    assert (shape["prompt_template"], shape["columns"], shape["roles"]) == (
        "Q: {q}", {"completion": "answer"}, {"user": "guest"},
    )  # fmt: skip
