"""A language model ranks where nobody has yet, and people are told where it is not sure."""

import json

import pytest

from rlhf_lightning.checkpoint import read_provenance
from rlhf_lightning.config.compose import compose
from rlhf_lightning.data.check import check
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.people.judgements import Item, Judgement
from rlhf_lightning.people.training import agreement_with_judge, from_people
from rlhf_lightning.stages.pipeline import run
from tests.support import small_pipeline
from tests.support.chat_server import chat_server, longer

pytestmark = pytest.mark.filterwarnings("ignore:predict returned None")  # answers are collected by the module


def test_stage_rank_asks_the_model_and_marks_what_it_is_not_sure_of(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    words = [*small_pipeline.inputs(tmp_path), f"output_root={tmp_path / 'runs'}", "rank.data.max_prompt_length=32",
             f"sft.output={tmp_path / 'model'}", "stages=[rank]", "judge=llm", "judge.model=m"]  # fmt: skip
    with chat_server(lambda q: "A" if "we left" in q else longer(q)) as (address, seen):
        words.append(f"judge.base_url={address}")
        metrics = run(compose([*words, f"run_dir={tmp_path / 'runs/one'}"]))
        asked = len(seen)
        run(compose([*words, f"run_dir={tmp_path / 'runs/two'}"]))
        assert len(seen) == asked > 0
    file = tmp_path / "runs/one/rankings/rankings.jsonl"
    rows = {row["prompt"]: row for row in map(json.loads, file.read_text().splitlines())}
    assert file.read_text() == (tmp_path / "runs/two/rankings/rankings.jsonl").read_text()
    for prompt, row in rows.items():
        by_length = [1 + sum(len(o.strip()) > len(a.strip()) for o in row["completions"]) for a in row["completions"]]
        assert row["unsure"] == (prompt == "we left")
        assert prompt == "we left" or row["ranks"] == by_length
    assert set(rows["we left"]["scores"]) == {0.5} and set(rows["we left"]["ranks"]) == {1}
    assert metrics["rank/judge_position_bias"] > 0 and metrics["rank/judge_unreadable"] == 0
    assert read_provenance(file.parent)["metrics"]["rank/judge_pairs"] == asked / 2
    assert json.loads(check([str(file), "--stage", "reward", "--json"]))["problems"] == []


def test_evaluate_refuses_a_judge_that_cannot_tell_policies_apart(tmp_path):
    words = [*small_pipeline.inputs(tmp_path), f"run_dir={tmp_path / 'run'}", "evaluate.data.max_prompt_length=32",
             f"data.prompts_validation={tmp_path / 'prompts.jsonl'}", f"sft.output={tmp_path / 'model'}",
             "stages=[evaluate]", "judge=llm", "judge.model=m", "judge.base_url=http://127.0.0.1:9/v1"]  # fmt: skip
    with pytest.raises(ConfigError, match=r"llm: compares a policy's answers .* name another judge"):
        run(compose(words))


def test_the_agreement_of_a_judge_with_people_counts_their_ordered_pairs():
    items = [Item(1, "p", ("a", "b", "c"), {"scores": [1.0, 0.5, 0.5]}), Item(2, "p", ("a", "b"), {})]
    said = [Judgement(1, 1, "ann", (1, 2, 3), (0, 1, 2), 1.0, ""), Judgement(2, 2, "ann", (1, 2), (0, 1), 1.0, "")]
    assert agreement_with_judge(items, said).mean == pytest.approx(2.5 / 3)
    people = from_people(items, said)
    assert people.summary()["with_judge"]["cases"] == 3
    assert "the judge of the candidates agrees with them on 83 %" in people.sentence()
