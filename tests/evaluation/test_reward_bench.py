"""RewardBench 2: the formulas against others written from the paper's description, and rows in its format."""

from collections import defaultdict

import numpy as np
import pytest

from rlhf_lightning.data.rows.bench import TIES, check_bench, is_bench
from rlhf_lightning.evaluation.reward_bench import SUBSETS, Judged, figures, judged_row

ROW = {"id": "7", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "num_incorrect": 3,
       "subset": "Math"}  # fmt: skip


def synthetic(count=200, seed=0):
    """Rows of all subsets with scores on a coarse grid, so that many are equal."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count // 2):
        subset = SUBSETS[number % 5]
        scores = rng.integers(0, 5, 4) / 2
        rows.append(Judged(str(number), subset, scores[:1].tolist(), scores[1:].tolist()))
    for number in range(count // 4):
        for kind, right in (("ref", 1), ("tied", int(rng.integers(1, 8)))):
            good = (rng.integers(2, 6, right) / 2).tolist()
            rows.append(Judged(f"{kind}:{number}", TIES, good, (rng.integers(0, 4, 3) / 2).tolist()))
    return rows


def reference(rows):
    """The same in arrays, a subset at a time."""
    found = {}
    for subset in SUBSETS[:-1]:
        table = np.array([[*row.correct, *row.wrong] for row in rows if row.subset == subset])
        best = table == table.max(axis=1, keepdims=True)
        found[subset] = (best[:, 0] / best.sum(axis=1)).mean()
    margins = defaultdict(dict)
    for row in rows:
        if row.subset == TIES:
            kind, number = row.name.split(":")
            margins[kind][int(number)] = (min(row.correct) - max(row.wrong), np.ptp(row.correct))
    ref, tied = (np.array([margins[kind][n] for n in sorted(margins[kind])]) for kind in ("ref", "tied"))
    hard = np.minimum(ref[:, 0], tied[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        close = np.nan_to_num(np.tanh(hard / tied[:, 1] - 1))
    parts = [(ref[:, 0] > 0), (tied[:, 0] > 0), (tied[:, 0] > tied[:, 1]), (hard > tied[:, 1]), close]
    found[TIES] = float(np.dot([0.3, 0.3, 0.2, 0.2, 0.01], [part.mean() for part in parts]))
    return found | {"mean": np.mean(list(found.values()))}


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_the_reference(seed):
    rows = synthetic(seed=seed)
    assert len(rows) == 200
    found, expected = figures(rows), reference(rows)
    assert list(found) == [*SUBSETS, "mean"] and found == pytest.approx(expected, rel=0, abs=1e-12)
    assert 0 < found["mean"] < 1


def test_a_model_that_knows_gets_one_and_one_that_does_not_care_a_share():
    perfect = [Judged("ref:1", TIES, [9.0], [0.0]), Judged("tied:1", TIES, [9.0, 8.0], [0.0]),
               Judged("1", "Math", [1.0], [0.0] * 3)]  # fmt: skip
    assert figures(perfect)["Math"] == 1 and figures(perfect)[TIES] == pytest.approx(1.01, abs=1e-5)
    assert figures([Judged("1", "Math", [1.0], [1.0] * 3)])["mean"] == 0.25


def test_a_number_that_has_no_partner_counts_for_accuracy_alone():
    rows = [Judged("ref:1", TIES, [1.0], [0.0]), Judged("tied:2", TIES, [1.0], [2.0])]
    assert figures(rows)[TIES] == 0.3


def test_rows_are_known_by_their_form():
    assert is_bench(ROW) and not is_bench({**ROW, "chosen": "a"}) and not is_bench({"chosen": ["a"], "rejected": ["b"]})
    assert not is_bench({**ROW, "chosen": [{"role": "user", "content": "a"}]})
    assert judged_row(ROW, [1.0, 2.0, 3.0, 4.0]) == Judged("7", "Math", [1.0], [2.0, 3.0, 4.0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_correct": 2}, "num_correct: says 2, and chosen has 1 answers"),
        ({"rejected": []}, "rejected: no answer is there"),
        ({"subset": TIES}, "id: '7'; in the subset Ties an id is ref:N or tied:N"),
    ],
)
def test_what_does_not_fit_is_told(change, says):
    with pytest.raises(ValueError, match=says):
        check_bench({**ROW, **change})
    with pytest.raises(ValueError, match="stands once"):
        figures([Judged("ref:1", TIES, [1.0], [0.0])] * 2)
