"""Rankings made of scored answers."""

import math

import pytest

from rlhf_lightning.data.readers.files import LocatedRow, read_rows
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.labelling.ranking import candidate_rows, ranking_rows, ranks, write_rows


def record(prompt, completion, score):
    return {
        "prompt": prompt,
        "row": {"prompt": prompt, "topic": "x"},
        "completion": completion,
        "scores": {"gold": score},
    }


def test_the_best_answer_gets_rank_one_and_equal_scores_tie():
    rows = ranking_rows([record("p", "a", 0.5), record("p", "b", 2.0), record("p", "c", 0.5)], "gold")
    assert rows == [{"prompt": "p", "topic": "x", "completions": ["a", "b", "c"], "ranks": [2, 1, 2], "judge": "gold"}]
    assert ranks([3.0]) == [1]


def test_an_answer_without_a_score_has_no_rank():
    records = [record("p", "a", float("nan")), record("p", "b", 1.0), record("p", "c", 2.0)]
    (row,) = ranking_rows(records, "gold")
    assert (row["completions"], row["ranks"]) == (["b", "c"], [2, 1])
    assert ranking_rows(records[:2], "gold") == []


@pytest.mark.parametrize("answer", [" ", "x\0y"])
def test_an_answer_that_no_file_of_rows_may_hold_is_left_out(answer, tmp_path):
    records = [record("p", answer, 3.0), record("p", "b", 1.0), record("p", "c", 2.0)]
    rows = ranking_rows(records, "gold")
    write_rows(tmp_path / "rows.jsonl", rows)
    assert [located.row for located in read_rows(tmp_path / "rows.jsonl")] == rows
    assert rows[0]["completions"] == candidate_rows(records)[0]["completions"] == ["b", "c"]


def test_prompts_are_told_apart_and_need_two_different_answers():
    records = [record("p", "a", 1.0), record("q", "same", 1.0), record("p", "b", 0.0), record("q", "same", 1.0)]
    assert [row["prompt"] for row in ranking_rows(records, "gold")] == ["p"]
    assert [row["completions"] for row in candidate_rows(records)] == [["a", "b"], ["same"]]


def test_noise_orders_two_answers_with_the_bradley_terry_probability():
    records = [r for i in range(4000) for r in (record(f"p{i}", "a", 1.0), record(f"p{i}", "b", 0.0))]
    rows = ranking_rows(records, "gold", noise=0.8, seed=1)
    share = sum(row["ranks"] == [1, 2] for row in rows) / len(rows)
    assert share == pytest.approx(1 / (1 + math.exp(-1 / 0.8)), abs=0.025)
    assert rows == ranking_rows(records, "gold", noise=0.8, seed=1)


def test_answers_to_messages_are_messages():
    prompt = [{"role": "user", "content": "hi"}]
    records = [record(prompt, "a", 1.0), record(prompt, "b", 0.0)]
    for row in ranking_rows(records, "gold") + candidate_rows(records):
        assert row["completions"] == [[{"role": "assistant", "content": text}] for text in "ab"]
        ranked = LocatedRow({"ranks": [1, 2], **row}, "file", 1)
        assert validate_rows([ranked], "comparisons") == [ranked]
