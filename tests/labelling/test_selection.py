"""The best of n answers, and what picking it was worth."""

from itertools import combinations

import pytest

from rlhf_lightning.functional.theory.best_of_n import best_of_n_kl_bound
from rlhf_lightning.labelling.selection import best_rows, selection_metrics


def record(prompt, completion, score, finished=True):
    return {
        "prompt": prompt, "row": {"prompt": prompt, "topic": "t"}, "completion": completion,
        "scores": {"s": score, "other": -score}, "finished": finished,
    }  # fmt: skip


RECORDS = [
    record("p", " a", 1.0), record("p", " b", 3.0), record("p", " c", 3.0), record("p", " d", 2.0),
    record("q", " e", 0.0, finished=False), record("q", " ", 5.0), record("q", " f", -1.0), record("q", " g", -2.0),
    record("r", "", 1.0), record("r", " h", 1.0, finished=False), record("r", "\n", 2.0), record("r", " ", 0.0),
]  # fmt: skip


def test_the_first_of_the_best_finished_answers_is_kept_with_its_score():
    assert best_rows(RECORDS, "s", 4) == [
        {"prompt": "p", "topic": "t", "completion": " b", "score": 3.0, "scorer": "s", "n": 4},
        {"prompt": "q", "topic": "t", "completion": " f", "score": -1.0, "scorer": "s", "n": 4},
    ]
    assert [row["completion"] for row in best_rows(RECORDS[:4], "other", 4)] == [" a"]


def test_an_answer_without_a_score_is_not_the_best():
    unjudged = record("p", " z", float("nan"))
    assert [row["completion"] for row in best_rows([unjudged, *RECORDS[:4]], "s", 5)] == [" b"]
    assert best_rows([unjudged] * 2, "s", 2) == []
    found = selection_metrics([unjudged, *RECORDS[:3]], best_rows([unjudged, *RECORDS[:3]], "s", 4), "s", 4)
    assert (found["score_all"], found["expected_best_of_1"]) == pytest.approx((7 / 3, 7 / 3))
    assert found["expected_best_of_4"] == 3.0


def test_an_answer_with_nul_is_not_the_best():
    assert [row["completion"] for row in best_rows([record("p", "x\0", 9.0), *RECORDS[:3]], "s", 4)] == [" b"]


def test_a_prompt_given_twice_is_answered_twice():
    assert len(best_rows(RECORDS[:4] + RECORDS[:4], "s", 4)) == 2


def test_messages_are_answered_by_a_message():
    prompt = [{"role": "user", "content": "hi"}]
    (row,) = best_rows([record(prompt, "yes", 1.0), record(prompt, "no", 0.0)], "s", 2)
    assert row["completion"] == [{"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize("n", [2, 4])
def test_the_curve_is_the_mean_over_all_subsets(n):
    records = RECORDS[:8]
    found = selection_metrics(records, best_rows(records, "s", n), "s", n)
    kept = [[1.0, 3.0, 3.0, 2.0], [-1.0, -2.0]] if n == 4 else [[1.0, 3.0], [3.0, 2.0], [-1.0, -2.0]]
    for k in (k for k in (1, 2, 4) if k <= n):
        per_prompt = [[max(subset) for subset in combinations(group, min(k, len(group)))] for group in kept]
        expected = sum(sum(best) / len(best) for best in per_prompt) / len(per_prompt)
        assert found[f"expected_best_of_{k}"] == pytest.approx(expected)
    assert found["score_all"] == pytest.approx(sum(r["scores"]["s"] for r in records) / 8)
    assert found["score_kept"] == pytest.approx(found[f"expected_best_of_{n}"])
    assert found["kl_bound"] == best_of_n_kl_bound(n)
    assert found["prompts"] == 8 / n


def test_a_number_of_answers_that_is_no_power_of_two_ends_the_curve():
    records = RECORDS[:6]
    found = selection_metrics(records, best_rows(records, "s", 6), "s", 6)
    assert {name for name in found if name.startswith("expected")} == {f"expected_best_of_{k}" for k in (1, 2, 4, 6)}
    assert found["score_kept"] == 3.0 and found["kept"] == 1
