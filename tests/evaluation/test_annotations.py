"""Annotation files in the format of AlpacaEval: who is meant, what a preference says, and both win rates."""

import json
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rlhf_lightning.data.readers.files import read_rows
from rlhf_lightning.errors import DataError
from rlhf_lightning.evaluation.annotations import annotated
from tests.support import commands


def annotation(number, preference, longer=0, policy="mine"):
    return {
        "instruction": f"Question {number}", "output_1": "a" * 200, "generator_1": "theirs", "dataset": "helpful_base",
        "output_2": "b" * (200 + longer), "generator_2": policy, "annotator": "a judge", "preference": preference,
        "price_per_example": 0.01, "time_per_example": 1.2, "raw_completion": {"logprobs": None},
    }  # fmt: skip


def drawn(count=60):
    draw = np.random.default_rng(0)
    longer = draw.integers(-150, 200, count)
    likely = 1 / (1 + np.exp(-(0.4 + np.tanh(longer / 100) + draw.normal(0, 0.5, count))))
    return [annotation(n, 1 + float(p), int(d)) for n, (p, d) in enumerate(zip(likely, longer, strict=True))]


@pytest.fixture
def write(tmp_path):
    def written(rows):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(rows))
        return path

    return written


def test_the_rates_are_the_mean_preference_and_a_plain_logistic_regression_on_the_characters(write):
    rows = drawn()
    (found,) = annotated(read_rows(write(rows)))
    share = np.array([row["preference"] - 1 for row in rows])
    longer = np.array([len(row["output_2"]) - len(row["output_1"]) for row in rows], float)
    x = np.tanh(longer / longer.std())[:, None]
    fit = LogisticRegression(C=np.inf, tol=1e-14, max_iter=10_000, solver="newton-cholesky").fit(
        np.concatenate([x, x]), np.repeat([1, 0], len(x)), sample_weight=np.concatenate([share, 1 - share])
    )
    assert (found.policy, found.against, found.annotator, found.pairs) == ("mine", "theirs", "a judge", 60)
    assert found.raw.win_rate == pytest.approx(share.mean(), abs=1e-12)
    assert found.equal.win_rate == pytest.approx(1 / (1 + math.exp(-fit.intercept_[0])), abs=1e-9)
    assert found.longer == pytest.approx(longer.mean()) and found.raw.win_rate - found.equal.win_rate > 0.01
    assert found.raw.low < found.raw.win_rate < found.raw.high


def test_zero_is_a_draw_null_counts_nowhere_and_policies_stand_apart(write):
    rows = [annotation(0, 2), annotation(1, 0), annotation(2, 1.5), annotation(3, None), annotation(0, 1.0, 0, "other")]
    mine, other = annotated(read_rows(write(rows)))
    assert (mine.pairs, mine.missing, mine.raw.win_rate) == (3, 1, pytest.approx(2 / 3))
    assert (other.policy, other.raw.win_rate, other.equal.win_rate) == ("other", 0.0, 0.0)


def test_a_table_writes_preferences_as_text(tmp_path):
    table = tmp_path / "annotations.csv"
    table.write_text("instruction,output_1,output_2,preference\na,b,c,2\nd,b,c,1.5\ne,b,c,\n")
    (found,) = annotated(read_rows(table))
    assert (found.pairs, found.missing, found.raw.win_rate) == (2, 1, 0.75)


@pytest.mark.parametrize(
    "rows", [[annotation(0, 1.7, 5)], [annotation(n, 1.5, n) for n in range(4)]], ids=["one", "ties"]
)
def test_one_pair_and_ties_alone_tell_little(write, rows):
    (found,) = annotated(read_rows(write(rows)))
    assert all(rate.high - rate.low > 0.6 for rate in (found.raw, found.equal))


def test_answers_to_one_instruction_are_not_independent(write):
    rows = [annotation(n, 1 + n % 2) for n in range(20)]
    (one,), (four,) = annotated(read_rows(write(rows))), annotated(read_rows(write(rows * 4)))
    assert four.raw.low == pytest.approx(one.raw.low, abs=0.02) and four.pairs == 80


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (annotation(1, 3), r"annotations\.json:\d+.*preference: is 3; write 1 where output_1 is better"),
        (annotation(1, True), "preference: is True"),
        (annotation(1, 0.5), r"preference: is 0\.5"),
        (annotation(1, "m"), "preference: is 'm'"),
        ({**annotation(1, 1), "output_2": None}, "output_2: is no text; an annotation has instruction"),
        ({"prompt": "a"}, "instruction: is no text"),
        (annotation(1, None, policy="none"), "none of the 1 annotations of none has one"),
    ],
)
def test_what_is_no_annotation_is_refused_with_its_place(write, row, says):
    with pytest.raises(DataError, match=says):
        annotated(read_rows(write([annotation(0, 1.5), row])))


def test_the_command_shows_three_lines_for_each_policy(write):
    done = commands.answer(["winrate", str(write([*drawn(), annotation(0, None)]))])
    title, raw, equal = done["out"].splitlines()
    assert title == "mine against theirs, by a judge: 60 pairs, 1 without a preference"
    assert raw.startswith("  win rate         64.") and equal.startswith("  at equal length  62.")
    assert equal.endswith("; its answers are +25 characters longer")
