"""Answers that are there already, scored as a run: the same rows as the command writes, with a record."""

import json
import math

import pytest
from transformers import LlamaForSequenceClassification

from rlhf_lightning.checkpoint import read_provenance, write_folder
from rlhf_lightning.checkpoint.provenance import sha256
from rlhf_lightning.config.compose import compose
from rlhf_lightning.data.exchanges import read_exchanges
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.evaluation.runs import read_run
from rlhf_lightning.evaluation.scored import sentences, summary
from rlhf_lightning.stages.pipeline import run
from tests.support import commands, tiny

ROWS = [
    {"prompt": "the food", "completion": "was good", "mine": 1},
    {"prompt": "the food", "chosen": "was good", "rejected": "was bad"},
    {"prompt": "we left", "completions": ["happy", "slow", "very slow"]},
    {"prompt": "the", "chosen": ["good"], "rejected": ["bad", "slow"], "subset": "Math", "id": "1"},
]


@pytest.fixture
def words(tmp_path):
    config = tiny.policy().config
    config.num_labels = 1

    def save(folder):
        LlamaForSequenceClassification(config).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)

    found = {"score_mean": 1.0, "score_std": 4.0}
    write_folder(tmp_path / "reward", save, {"stage": "reward", "parents": {}, "config": {}, "metrics": found})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ["stage=score", "task=custom", "trainer=cpu", "logger=none", f"model.path={tmp_path / 'reward'}",
            f"score.rows={tmp_path / 'rows.jsonl'}", f"run_dir={tmp_path / 'run'}"]  # fmt: skip


def test_the_stage_writes_what_the_command_writes_and_names_what_was_scored(tmp_path, words, monkeypatch):
    metrics = run(compose(words))
    done = commands.answer(["score", str(tmp_path / "reward"), str(tmp_path / "rows.jsonl"), "--device", "cpu"])
    text = (tmp_path / "run/scores/scored.jsonl").read_text()
    assert done["code"] == 0 and [json.loads(line) for line in text.splitlines()] == [
        json.loads(line) for line in done["out"].splitlines()
    ]
    record = read_provenance(tmp_path / "run/scores")
    assert record["metrics"] == metrics and metrics["score/answers"] == 9
    assert read_run(tmp_path / "run").numbers == {
        "mean score": f"{metrics['score/mean']:z.3f}", "RewardBench 2": f"{metrics['score/RewardBench 2/mean']:z.3f}"
    }  # fmt: skip
    assert set(metrics) == {
        "score/answers",
        "score/mean",
        "score/std",
        "score/RewardBench 2/Math",
        "score/RewardBench 2/mean",
    }
    assert record["parents"]["rows"]["sha256"] == sha256(tmp_path / "rows.jsonl")
    assert record["parents"]["reward_model"]["path"] == str(tmp_path / "reward")
    monkeypatch.delattr("rlhf_lightning.stages.score.scored")
    assert run(compose([*words, "resume=auto"])) == metrics  # it is finished
    monkeypatch.undo()
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0]))
    with pytest.raises(ConfigError, match=r"rows\.jsonl changed after score had read it") as refused:
        run(compose([*words, "resume=auto"]))
    assert "overwrite=true instead of resume=auto   to do score again" in str(refused.value)
    assert run(compose([*words, "overwrite=true"]))["score/answers"] == 10


def test_raw_scores_are_those_before_mean_and_standard_deviation_of_the_folder(tmp_path, words):
    usual, raw = run(compose(words)), run(compose([*words, "score.raw=true", f"run_dir={tmp_path / 'raw'}"]))
    assert raw["score/mean"] == pytest.approx(4 * usual["score/mean"] + 1, abs=1e-5)


def test_in_a_chain_the_reward_model_is_that_of_the_run():
    config = compose(["stages=[sft,rank,reward,score]", "score.rows=a.jsonl"])
    assert config["score"]["reward"] == config["reward"]["output"]


ASKED, SAID = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("row", "pairs"),
    [
        ({"prompt": "a", "completions": ["b"]}, {"0": ("a", "b")}),
        ({"prompt": "a", "completions": [" "]}, {"0": ("a", " ")}),
        ({"prompt": ASKED, "completions": SAID}, {"0": (ASKED, SAID)}),
        ({"prompt": ASKED, "completions": [SAID]}, {"0": (ASKED, SAID)}),
        ({"prompt": ASKED, "completions": [*SAID, *SAID]}, {"0": (ASKED, SAID), "1": (ASKED, SAID)}),
        ({"prompt": "a", "completions": '["b", ""]'}, {"0": ("a", "b"), "1": ("a", "")}),  # of a table
        ({"prompt": "a", "completion": "b", "completions": []}, {"score": ("a", "b")}),
        ({"prompt": json.dumps(ASKED), "completion": json.dumps(SAID)}, {"score": (ASKED, SAID)}),
        ({"prompt": ASKED, "completion": [*ASKED, *SAID]}, {"score": (ASKED, SAID)}),
        ({"prompt": ASKED, "completion": SAID[0]}, {"score": (ASKED, SAID)}),
        (
            {"prompt": ASKED, "chosen": "b", "rejected": ""},
            {"score_chosen": (ASKED, SAID), "score_rejected": (ASKED, "")},
        ),
    ],
)
def test_answers_are_read_as_training_reads_them_and_one_that_says_nothing_stays(tmp_path, row, pairs):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (found,) = read_exchanges(str(tmp_path / "rows.jsonl"))
    assert found.row == row and found.pairs == pairs


def test_a_list_of_answers_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completions": "[b"}))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: completions: is a list that was written as text, and cannot"):
        read_exchanges(str(tmp_path / "rows.jsonl"))


def test_a_row_with_a_score_ends_the_run_and_leaves_no_output(tmp_path, words):
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "a", "completion": "b", "score": 1.0}))
    with pytest.raises(DataError, match=r"rows\.jsonl:5: score: is there already"):
        run(compose(words))
    assert not (tmp_path / "run/scores").exists()


def test_the_summary_counts_every_answer_of_every_kind_of_row():
    rows = [{"score": 1.0}, {"score_chosen": 2.0, "score_rejected": 3.0}, {"scores": [4.0, 5.0]}]
    found = summary(rows)
    assert found == {"answers": 5.0, "mean": 3.0, "std": pytest.approx(math.sqrt(2))}
    assert sentences(found, True) == [
        "5 answers: 3.000 ± 1.414 (mean and standard deviation; held-out answers of its training: 0 ± 1)"
    ]
    bench = {"chosen": ["a"], "rejected": ["b", "c"], "subset": "Math", "id": "1", "scores": [1.0, 1.0, 0.0]}
    assert sentences(summary([bench]), False)[1] == "RewardBench 2: Math 50.0, mean 50.0"
