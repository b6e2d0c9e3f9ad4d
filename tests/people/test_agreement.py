import random
from itertools import combinations

import pytest
from scipy.stats import kendalltau

from rlhf_lightning.people.agreement import agreement_of, krippendorff_alpha, last_ranks, ordinal_alpha, to_discuss
from rlhf_lightning.people.judgements import Item, Judgement
from rlhf_lightning.people.rankings import kendall_tau_b, pair_agreement


def item(number, *completions):
    return Item(number, f"p{number}", completions)


def judgement(number, annotator, ranks, order=None, seconds=1.0):
    order = order or tuple(range(len(ranks or ())))
    return Judgement(1, number, annotator, ranks, order, seconds, "2026-01-01T00:00:00Z")


def random_ranks(draw, size):
    """With ties, as places 1, 2, ... of a competition."""
    scores = [draw.randrange(size) for _ in range(size)]
    return tuple(1 + sum(other < score for other in scores) for score in scores)


def brute_alpha(units):
    """Observed over expected disagreement, value by value, without a coincidence matrix."""
    rows = []
    for rankings in units:
        for answer in range(len(rankings[0])):
            places = []
            for ranks in rankings:
                before = sum(r < ranks[answer] for r in ranks)
                same = sum(r == ranks[answer] for r in ranks)
                places.append(round((before + (same - 1) / 2) / (len(ranks) - 1), 9))
            if len(places) > 1:
                rows.append(places)
    flat = [value for row in rows for value in row]

    def apart(a, b):
        low, high = min(a, b), max(a, b)
        between = sum(low <= value <= high for value in flat)
        return (between - (flat.count(a) + flat.count(b)) / 2) ** 2

    gaps = {pair: apart(*pair) for pair in {(a, b) for a in flat for b in flat}}
    observed = sum(
        gaps[a, b] / (len(row) - 1) for row in rows for i, a in enumerate(row) for j, b in enumerate(row) if i != j
    )
    expected = sum(gaps[a, b] for i, a in enumerate(flat) for j, b in enumerate(flat) if i != j) / (len(flat) - 1)
    return 1 - observed / expected


@pytest.mark.parametrize("seed", range(12))
def test_alpha_is_that_of_a_count_over_all_values_with_ties_missing_people_and_other_sizes(seed):
    draw = random.Random(seed)
    units = [
        [random_ranks(draw, size) for _ in range(draw.randint(1, 5))]
        for size in (draw.randint(2, 5) for _ in range(draw.randint(3, 12)))
    ]
    assert krippendorff_alpha(units) == pytest.approx(brute_alpha(units), abs=1e-9)


def test_alpha_is_that_of_the_example_that_krippendorff_works_out():
    said = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[int(value) for value in unit if value != "."] for unit in zip(*said, strict=True)]
    assert ordinal_alpha(units) == pytest.approx(0.815, abs=5e-4)  # Krippendorff 2011, ordinal data


def test_alpha_is_one_for_the_same_rankings_and_not_defined_where_nothing_can_be_compared():
    assert krippendorff_alpha([[(1, 2, 2)] * 3, [(3, 1, 2)] * 2]) == 1
    assert krippendorff_alpha([[(1, 2)]]) is None
    assert krippendorff_alpha([[(1, 1), (1, 1)]]) is None


def test_alpha_of_rankings_by_chance_is_near_zero_and_of_opposite_ones_below():
    draw = random.Random(0)
    by_chance = [[tuple(draw.sample(range(1, 5), 4)) for _ in range(3)] for _ in range(500)]
    assert abs(krippendorff_alpha(by_chance)) < 0.05
    assert krippendorff_alpha([[(1, 2, 3), (3, 2, 1)]] * 4) < -0.5


@pytest.mark.parametrize("seed", range(8))
def test_tau_is_that_of_scipy(seed):
    draw = random.Random(seed)
    a, b = random_ranks(draw, 6), random_ranks(draw, 6)
    assert kendall_tau_b(a, b) == pytest.approx(float(kendalltau(a, b).statistic), abs=1e-12)


def test_tau_is_not_defined_where_all_is_tied():
    assert kendall_tau_b((1, 1, 1), (1, 2, 3)) is None


def test_a_tie_of_one_person_is_half_an_agreement_and_of_both_a_whole_one():
    assert pair_agreement((1, 1), (1, 1)) == (1, 1)
    assert pair_agreement((1, 1), (1, 2)) == (0.5, 1)
    assert pair_agreement((2, 1), (1, 2)) == (0, 1)


def test_the_ceiling_counts_what_one_person_orders_and_another_says_of_it():
    items = [item(1, "a", "b", "c")]
    # ann: a > b > c. ben: a > (b = c). Ordered by ann: ab yes, ac yes, bc half; by ben: ab yes, ac yes.
    said = [judgement(1, "ann", (1, 2, 3)), judgement(1, "ben", (1, 2, 2))]
    found = agreement_of(items, said)
    assert found.ceiling.mean == pytest.approx(4.5 / 5)
    assert found.agreement.mean == pytest.approx(2.5 / 3)
    assert (found.items, found.shared, found.judgements) == (1, 1, 2)


def test_the_last_ranking_counts_and_a_later_skip_does_not_take_it_back():
    said = [judgement(1, "ann", (1, 2)), judgement(1, "ann", (2, 1)), judgement(1, "ann", None)]
    assert last_ranks(said) == {1: {"ann": (2, 1)}}


def test_repeats_tell_how_far_people_agree_with_themselves():
    said = [judgement(1, "ann", (1, 2)), judgement(1, "ann", (2, 1)), judgement(2, "ann", (1, 2))]
    (ann,) = agreement_of([item(1, "a", "b"), item(2, "a", "b")], said).people
    assert (ann.with_self.mean, ann.with_self.cases, ann.ranked) == (0, 1, 2)
    assert ann.with_others.mean is None


def test_a_person_has_counts_median_seconds_and_a_share_of_ties():
    said = [
        judgement(1, "ann", (1, 1), seconds=3), judgement(2, "ann", (1, 2), seconds=5), judgement(3, "ann", None),
        judgement(2, "ann", (1, 2), seconds=100),
    ]  # fmt: skip
    (ann,) = agreement_of([item(n, "a", "b") for n in (1, 2, 3)], said).people
    assert (ann.ranked, ann.skipped, ann.seconds, ann.tied) == (2, 1, 5, 0.5)


def biased(bias, seed, count=3000, size=4):
    """With probability ``bias`` the top of the page is ranked first, else the order is by chance."""
    draw = random.Random(seed)
    for number in range(1, count + 1):
        order = draw.sample(range(size), size)
        best = order[:1] if draw.random() < bias else []
        rest = [answer for answer in draw.sample(range(size), size) if answer not in best]
        ranks = tuple((best + rest).index(answer) + 1 for answer in range(size))
        yield judgement(number, "ann", ranks, tuple(order))


@pytest.mark.parametrize("bias", [0.0, 0.2, 0.6])
def test_a_known_preference_for_the_top_of_the_page_is_recovered(bias):
    (ann,) = agreement_of([], biased(bias, seed=1)).people
    assert ann.position.mean == pytest.approx(bias * (1 - 1 / 4), abs=0.05)
    assert abs(ann.position.mean - bias * 3 / 4) < 4 * ann.position.stderr < 0.06


@pytest.mark.parametrize("bias", [-0.3, 0.0, 0.4])
def test_a_known_preference_for_long_answers_is_recovered(bias):
    draw = random.Random(2)
    items, said = [], []
    for number in range(1, 2001):
        lengths = draw.sample(range(1, 9), 2)
        items.append(item(number, *("x" * length for length in lengths)))
        longer_first = draw.random() < 0.5 + bias
        said.append(judgement(number, "ann", (1, 2) if longer_first == (lengths[0] > lengths[1]) else (2, 1)))
    (ann,) = agreement_of(items, said).people
    assert ann.length.mean == pytest.approx(bias, abs=0.05)
    assert abs(ann.length.mean - bias) < 4 * ann.length.stderr < 0.06


def test_length_is_that_of_what_messages_say_and_answers_of_one_length_do_not_count():
    said = [judgement(1, "ann", (2, 1, 3))]
    long, short = ([{"role": "assistant", "content": text}] for text in ("xxx", "x"))
    (ann,) = agreement_of([item(1, long, short, short)], said).people
    assert (ann.length.mean, ann.length.cases) == (0, 2)


def test_a_shared_first_place_counts_its_share_for_the_top_of_the_page():
    (ann,) = agreement_of([], [judgement(1, "ann", (1, 1, 3, 4), order=(1, 0, 2, 3))]).people
    assert ann.position.mean == pytest.approx(1 / 2 - 1 / 4)


def test_items_to_discuss_begin_with_the_largest_disagreement_and_leave_out_those_that_agree():
    last = {
        1: {"ann": (1, 2, 3), "ben": (1, 3, 2)}, 2: {"ann": (1, 2, 3), "ben": (3, 2, 1)},
        3: {"ann": (1, 2), "ben": (1, 2)}, 4: {"ann": (1, 2)},
    }  # fmt: skip
    found = to_discuss(last)
    assert [(one.item, one.disagreement) for one in found] == [(2, 1), (1, pytest.approx(1 / 3))]


def test_the_standard_error_is_the_spread_over_many_repeats_of_the_same_study():
    draw = random.Random(3)

    def study():
        rankings = [[tuple(draw.sample(range(1, 5), 4)) for _ in range(3)] for _ in range(30)]
        said = [judgement(n, f"a{a}", ranks) for n, item in enumerate(rankings) for a, ranks in enumerate(item)]
        return agreement_of([], said).agreement

    found = [study() for _ in range(40)]
    spread = (sum((one.mean - 0.5) ** 2 for one in found) / len(found)) ** 0.5
    assert sum(one.stderr for one in found) / len(found) == pytest.approx(spread, rel=0.3)


def test_alpha_and_the_others_are_plain_values_in_the_summary():
    said = [judgement(n, name, (1, 2, 3)) for n in (1, 2) for name in ("ann", "ben")]
    found = agreement_of([], said).summary()
    assert found["alpha"] == found["tau"] == found["agreement"]["mean"] == found["ceiling"]["mean"] == 1
    assert all(a != b for a, b in combinations(found, 2))
