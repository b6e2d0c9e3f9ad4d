import random
from itertools import combinations

import numpy as np
import pytest

from rlhf_lightning.data.readers.files import read_rows
from rlhf_lightning.data.rows.validate import validate_rows
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.labelling.ranking import write_rows
from rlhf_lightning.people import merging
from rlhf_lightning.people.judgements import Item, Judgement
from rlhf_lightning.people.merging import accuracies, merge, merged_ranks


def judgement(number, annotator, ranks):
    return Judgement(1, number, annotator, ranks, tuple(range(len(ranks or ()))), 1.0, "")


def item(number, size=3, **columns):
    answers = tuple(f" answer {n}" for n in range(size))
    return Item(number, f"prompt {number}", answers, {"prompt": "old", "completions": [], **columns})


def pairs_by_skill(skills, count, seed):
    """Pairs of answers, the first the better; each person says so with a probability of their own."""
    draw = random.Random(seed)
    for number in range(1, count + 1):
        for name, skill in skills.items():
            yield judgement(number, name, (1, 2) if draw.random() < skill else (2, 1))


def of(judgements):
    found = {}
    for one in judgements:
        found.setdefault(one.item, {})[one.annotator] = one.ranks
    return list(found.values())


def test_accuracies_of_simulated_people_are_found_without_the_truth():
    skills = {"ann": 0.95, "ben": 0.8, "cat": 0.6}
    found = accuracies(of(pairs_by_skill(skills, 3000, seed=0)))
    assert found == pytest.approx(skills, abs=0.03)


def test_accuracies_are_the_most_likely_ones_given_the_prior():
    """No small step away from them raises the posterior, summed pair by pair over both true orders."""
    rankings = of(pairs_by_skill({"ann": 0.9, "ben": 0.75, "cat": 0.65}, 200, seed=1))

    def posterior(right):
        total = 0.0
        for ranks in rankings:
            chances = [1.0, 1.0]
            for name, (first, second) in ranks.items():
                says = first < second
                chances = [
                    chances[0] * (right[name] if says else 1 - right[name]),
                    chances[1] * (1 - right[name] if says else right[name]),
                ]
            total += np.log(sum(chances) / 2)
        for p in right.values():
            total += merging.PRIOR * (merging.PRIOR_ACCURACY * np.log(p) + (1 - merging.PRIOR_ACCURACY) * np.log(1 - p))
        return total

    found = accuracies(rankings)
    for name in found:
        for step in (-1e-3, 1e-3):
            assert posterior(found | {name: found[name] + step}) < posterior(found)


def test_few_judgements_do_not_give_extremes():
    found = accuracies(of([judgement(1, name, (1, 2)) for name in ("ann", "ben")]))
    assert all(0.75 < p < 0.8 for p in found.values())


def test_two_people_who_differ_weigh_the_same_since_nobody_can_tell_who_is_right():
    said = list(pairs_by_skill({"ann": 0.9, "ben": 0.6}, 300, seed=2))
    found = accuracies(of(said))
    assert found["ann"] == pytest.approx(found["ben"])
    merged = merge([item(n, 2) for n in range(1, 301)], said)
    differ = [ranks for ranks in of(said) if ranks["ann"] != ranks["ben"]]
    assert sum(row["ranks"] == [1, 1] for row in merged.rows) == len(differ) > 50


def test_who_ranks_alone_is_heard_alone():
    merged = merge([item(1)], [judgement(1, "ann", (2, 3, 1))])
    assert merged.rows[0]["ranks"] == [2, 3, 1]
    assert merged.rows[0]["annotators"] == {"ann": 1.0}
    assert merged.accuracies == {"ann": merging.PRIOR_ACCURACY}


def test_what_one_person_ranks_alone_says_nothing_of_how_reliable_they_are():
    shared = list(pairs_by_skill({"ann": 0.9, "ben": 0.8, "cat": 0.7}, 200, seed=5))
    alone = [judgement(n, "cat", (1, 2)) for n in range(201, 1201)]
    assert accuracies(of([*shared, *alone])) == pytest.approx(accuracies(of(shared)), abs=1e-6)


def test_the_reliable_one_outvotes_two_who_guess_and_a_majority_does_not_let_them():
    skills = {"ann": 0.97, "ben": 0.55, "cat": 0.55}
    said = list(pairs_by_skill(skills, 2000, seed=3))
    items = [item(number, 2) for number in range(1, 2001)]

    def right(method):
        return sum(row["ranks"] == [1, 2] for row in merge(items, said, method).rows) / 2000

    assert right("weighted") > 0.95 > 0.85 > right("majority")


def test_someone_at_chance_has_no_weight_and_a_warning_says_so(caplog):
    said = list(pairs_by_skill({"ann": 0.9, "ben": 0.9, "cat": 0.9, "dan": 0.3}, 300, seed=4))
    merged = merge([item(1, 2)], said)
    assert merged.weights["dan"] == 0 < merged.weights["ann"]
    assert "dan orders answers as the others do no more often than chance" in caplog.text


def test_items_that_only_people_at_chance_ranked_are_merged_as_a_majority():
    said = list(pairs_by_skill({"ann": 0.9, "ben": 0.9, "cat": 0.9, "dan": 0.3}, 300, seed=4))
    merged = merge([item(999, 2)], [*said, judgement(999, "dan", (2, 1))])
    assert merged.rows[0]["ranks"] == [2, 1] and merged.rows[0]["annotators"] == {"dan": 1.0}


@pytest.mark.parametrize("seed", range(20))
def test_a_majority_without_a_circle_is_followed_pair_by_pair(seed):
    draw = random.Random(seed)
    rankings = [tuple(draw.sample(range(1, 5), 4)) for _ in range(5)]
    won = {(a, b): sum(r[a] < r[b] for r in rankings) > 2 for a in range(4) for b in range(4) if a != b}
    circle = any(won[a, b] and won[b, c] and won[c, a] for a in range(4) for b in range(4) for c in range(4)
                 if len({a, b, c}) == 3)  # fmt: skip
    found = merged_ranks([(ranks, 1.0) for ranks in rankings])
    if circle:
        assert len(set(found)) < 4
    else:
        assert all((found[a] < found[b]) == won[a, b] for a, b in combinations(range(4), 2))


def test_weights_decide_and_equal_weights_on_both_sides_tie():
    assert merged_ranks([((1, 2), 0.3), ((2, 1), 0.1 + 0.2)]) == [1, 1]
    assert merged_ranks([((1, 2), 0.5), ((2, 1), 0.4)]) == [1, 2]
    assert merged_ranks([((1, 1), 0.9), ((2, 1), 0.1)]) == [2, 1]


def test_rows_keep_the_columns_of_the_candidates_but_what_others_said_of_the_answers():
    merged = merge([item(1, scores=[3, 2, 1], topic="sky"), item(2)], [judgement(1, "ann", (3, 1, 1))], "majority")
    assert merged.left_out == 1
    assert merged.rows == [
        {"prompt": "prompt 1", "completions": [" answer 0", " answer 1", " answer 2"], "topic": "sky",
         "ranks": [3, 1, 1], "judgements": 1, "annotators": {"ann": 1.0}}
    ]  # fmt: skip


def test_rows_are_taken_by_training_as_they_are(tmp_path):
    merged = merge([item(1), item(2)], [judgement(n, name, (1, 2, 3)) for n in (1, 2) for name in ("ann", "ben")])
    write_rows(tmp_path / "rankings.jsonl", merged.rows)
    found = validate_rows(read_rows(str(tmp_path / "rankings.jsonl")), "comparisons")
    assert [dict(located.row) for located in found] == merged.rows


def test_skips_and_earlier_rankings_do_not_count():
    said = [judgement(1, "ann", (1, 2, 3)), judgement(1, "ann", (3, 2, 1)), judgement(1, "ben", None)]
    (row,) = merge([item(1)], said, "majority").rows
    assert (row["ranks"], row["judgements"]) == ([3, 2, 1], 1)


def test_an_unknown_way_to_merge_is_refused():
    with pytest.raises(ConfigError, match="merge=mean: must be one of weighted, majority"):
        merge([], [], "mean")
