import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.functional.masking import (
    is_eos,
    masked_mean,
    masked_moments,
    masked_sum,
    merge_moments,
    response_mask,
    whiten_with,
)
from tests.support.examples import few_examples

rows = st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=4)
numbers = st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=1, max_size=20)


def whiten(x, mask, **options):
    moments = masked_moments(x, mask)
    return whiten_with(x, mask, moments.mean, moments.var, **options)


def split(pairs):
    return torch.tensor([p[0] for p in pairs], dtype=torch.float64), torch.tensor([p[1] for p in pairs])


@few_examples
@given(rows, st.sets(st.integers(0, 4), max_size=2))
def test_mask_is_what_a_loop_over_tokens_finds(ids, eos):
    expected = []
    for row in ids:
        ended, line = False, []
        for token in row:
            line.append(not ended)
            ended = ended or token in eos
        expected.append(line)
    assert response_mask(torch.tensor(ids), sorted(eos)).tolist() == expected
    assert is_eos(torch.tensor(ids), sorted(eos)).any(1).tolist() == [bool(set(row) & eos) for row in ids]


def test_any_of_several_end_tokens_ends_a_response():
    assert response_mask(torch.tensor([[5, 3, 2, 9]]), [2, 3]).tolist() == [[True, True, False, False]]


@few_examples
@given(numbers)
def test_mean_and_variance_are_those_of_the_entries_that_count(pairs):
    x, mask = split(pairs)
    kept = x[mask]
    expected = (kept.mean(), kept.var(correction=0)) if len(kept) else (torch.zeros(()).double(),) * 2
    count, mean, var = masked_moments(x, mask)
    assert count == len(kept)
    assert_close((mean, var), expected)
    assert_close(masked_sum(x, mask), kept.sum())


@few_examples
@given(numbers, st.integers(1, 4))
def test_merged_moments_of_parts_are_those_of_the_whole(pairs, size):
    x, mask = split(pairs)
    parts = [masked_moments(a, b) for a, b in zip(x.split(size), mask.split(size), strict=True)]
    assert_close(merge_moments(*(torch.stack(column) for column in zip(*parts, strict=True))), masked_moments(x, mask))


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf")])
def test_masked_entries_reach_neither_value_nor_gradient(junk):
    x = torch.tensor([1.0, 2.0, junk], requires_grad=True)
    mask = torch.tensor([True, True, False])
    assert masked_mean(x, mask) == 1.5
    whiten(x, mask).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[2] == 0


def test_an_empty_mask_gives_zero_and_not_nan():
    x, none = torch.ones(3), torch.zeros(3, dtype=torch.bool)
    assert masked_mean(x, none) == 0
    assert masked_mean(x, none, denominator=0.0) == 0
    assert masked_mean(x, none, denominator=torch.tensor(0)) == 0
    assert whiten(x, none).tolist() == [0, 0, 0]


def test_the_given_denominator_divides():
    assert masked_mean(torch.tensor([1.0, 3.0]), torch.tensor([True, True]), denominator=8) == 0.5


@few_examples
@given(numbers.filter(lambda pairs: len({x for x, m in pairs if m}) > 1))
def test_whitened_entries_have_mean_zero_and_variance_one(pairs):
    x, mask = split(pairs)
    if x[mask].var() < 1e-2:  # the 1e-8 under the root would show
        return
    white = whiten(x, mask)
    assert_close(white[mask].mean(), torch.zeros(()).double(), atol=1e-6, rtol=0)
    assert_close(white[mask].var(correction=0), torch.ones(()).double(), atol=1e-5, rtol=0)
    assert (white[~mask] == 0).all()


def test_eps_is_added_to_the_variance_under_the_root():
    x, mask = torch.tensor([1.0, 3.0]), torch.tensor([True, True])
    assert_close(whiten(x, mask, eps=3.0), torch.tensor([-0.5, 0.5]))
    assert whiten(torch.ones(2), mask).tolist() == [0, 0]


def test_two_ranks_whiten_like_one():
    x, mask = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double(), torch.rand(4, 6) > 0.3
    parts = [masked_moments(a, b) for a, b in ((x[:1], mask[:1]), (x[1:], mask[1:]))]
    _, mean, var = merge_moments(*(torch.stack(column) for column in zip(*parts, strict=True)))
    assert_close(whiten_with(x, mask, mean, var), whiten(x, mask))
