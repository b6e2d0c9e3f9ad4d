import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.functional.theory.best_of_n import best_of_n, best_of_n_kl_bound, best_of_n_law
from tests.support.examples import few_examples

supports = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=4).filter(
    lambda rows: any(weight for weight, _ in rows)
)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_best_of_n_is_the_mean_over_all_subsets(n):
    proxy, gold = [3.0, 1.0, 4.0, 1.5], [0.0, 5.0, -2.0, 1.0]
    picks = [max(subset, key=lambda i: proxy[i]) for subset in itertools.combinations(range(4), n)]
    out = best_of_n(torch.tensor(proxy).double(), torch.tensor(gold).double(), n)
    assert_close(out.proxy.item(), sum(proxy[i] for i in picks) / len(picks))
    assert_close(out.gold.item(), sum(gold[i] for i in picks) / len(picks))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_tied_samples_share_the_pick_in_whatever_order_they_come(n):
    proxy, gold = [1.0, 2.0, 2.0, 0.0, 2.0], [0.0, 5.0, -2.0, 1.0, 9.0]
    expected = []
    for subset in itertools.combinations(range(5), n):
        top = max(proxy[i] for i in subset)
        ties = [gold[i] for i in subset if proxy[i] == top]
        expected.append(sum(ties) / len(ties))
    for order in itertools.permutations(range(5)):
        out = best_of_n(torch.tensor(proxy).double()[list(order)], torch.tensor(gold).double()[list(order)], n)
        assert_close(out.gold.item(), sum(expected) / len(expected))
        assert_close(out.weights.sum().item(), 1.0)


def test_many_samples_do_not_overflow():
    proxy = torch.arange(2000, dtype=torch.float32)
    out = best_of_n(proxy, -proxy, 1000)
    assert_close(out.weights.sum(), torch.tensor(1.0))
    assert_close(out.proxy, torch.tensor(2001 * 1000 / 1001 - 1))  # mean of the largest of n out of 1 .. N, less 1
    assert_close(out.gold, -out.proxy)


@pytest.mark.parametrize("n", [0, -1, 3])
def test_best_of_none_or_of_more_than_there_are_is_refused(n):
    with pytest.raises(ValueError, match=f"best-of-{n} needs at least {max(n, 1)}"):
        best_of_n(torch.zeros(2), torch.zeros(2), n)


@pytest.mark.parametrize("ask", [best_of_n_kl_bound, lambda n: best_of_n_law(torch.ones(1), torch.ones(1), n)])
def test_best_of_none_is_refused(ask):
    with pytest.raises(ValueError, match="n must be at least 1"):
        ask(0)


def test_the_kl_bound_holds_with_equality_for_the_best_of_uniform_draws():
    # density of the best of 4 uniform draws is 4 u^3; KL to the uniform by the midpoint rule
    u = (torch.arange(100000, dtype=torch.float64) + 0.5) / 100000
    density = 4 * u**3
    assert_close((density * density.log()).mean().item(), best_of_n_kl_bound(4), atol=1e-4, rtol=0)


@few_examples
@given(supports, st.integers(1, 4))
def test_the_law_is_what_listing_all_draws_gives(rows, n):
    total = sum(weight for weight, _ in rows)
    p, scores = [weight / total for weight, _ in rows], [score for _, score in rows]
    expected = [0.0] * len(rows)
    for draw in itertools.product(range(len(rows)), repeat=n):
        winners = [i for i in draw if scores[i] == max(scores[j] for j in draw)]
        for i in winners:
            expected[i] += math.prod(p[j] for j in draw) / len(winners)
    law = best_of_n_law(torch.tensor(p, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64), n)
    assert_close(law.probabilities.tolist(), expected)
    kl = sum(q * math.log(q / base) for q, base in zip(expected, p, strict=True) if q)
    assert_close(law.kl.item(), kl, atol=1e-9, rtol=1e-6)
    assert_close(law.expected_score.item(), sum(q * s for q, s in zip(expected, scores, strict=True)))
    assert law.kl <= best_of_n_kl_bound(n) + 1e-9


def test_the_bound_is_reached_as_the_support_grows():
    scores = torch.arange(10000, dtype=torch.float64)
    gap = best_of_n_kl_bound(8) - best_of_n_law(torch.ones(10000).double(), scores, 8).kl
    assert 0 < gap < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_law_of_many_samples_and_rare_answers_stays_exact(dtype):
    p = torch.tensor([0.5, 0.5 - 1e-12, 1e-12, 0.0], dtype=dtype)
    law = best_of_n_law(p, torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=dtype), 10**6)
    assert_close(law.probabilities.double(), torch.tensor([0.0, 1 - 1e-6, 1e-6, 0.0]).double(), atol=1e-7, rtol=1e-4)
    assert_close(law.kl.double(), torch.tensor(math.log(2)).double(), atol=3e-5, rtol=0)


def test_everybody_equal_is_the_base_policy():
    p = torch.tensor([0.5, 0.3, 0.2])
    law = best_of_n_law(p, torch.ones(3), 64)
    assert_close(law.probabilities, p)
    assert_close(law.kl.item(), 0.0, atol=1e-6, rtol=0)
