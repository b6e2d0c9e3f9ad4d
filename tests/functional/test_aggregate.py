from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.functional.aggregate import (
    seq_mean_token_mean,
    seq_mean_token_sum,
    token_mean,
    token_sum_norm,
)
from tests.support.examples import few_examples

tables = st.lists(
    st.lists(st.tuples(st.floats(-10, 10, width=32), st.booleans()), min_size=3, max_size=3), min_size=1, max_size=6
)


def split(table):
    x = torch.tensor([[value for value, _ in row] for row in table], dtype=torch.float64)
    return x, torch.tensor([[counts for _, counts in row] for row in table])


@pytest.mark.parametrize(
    ("aggregate", "count"),
    [
        (token_mean, lambda mask: mask.sum()),
        (seq_mean_token_mean, lambda mask: mask.any(1).sum()),
        (seq_mean_token_sum, lambda mask: mask.any(1).sum()),
        (partial(token_sum_norm, norm=7), lambda mask: len(mask)),
    ],
    ids=["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "token_sum_norm"],
)
@few_examples
@given(table=tables, size=st.integers(1, 4))
def test_micro_batches_sum_to_the_whole(aggregate, count, table, size):
    x, mask = split(table)
    parts = zip(x.split(size), mask.split(size), strict=True)
    total = sum(aggregate(a, b, denominator=count(mask)) for a, b in parts)
    assert_close(total, aggregate(x, mask))


@few_examples
@given(tables)
def test_each_is_what_a_plain_loop_finds(table):
    x, mask = split(table)
    kept = [[value for value, counts in row if counts] for row in table]
    full = [row for row in kept if row]
    tokens = [value for row in kept for value in row]
    expected = [
        sum(tokens) / max(len(tokens), 1),
        sum(sum(row) / len(row) for row in full) / max(len(full), 1),
        sum(sum(row) for row in full) / max(len(full), 1),
        sum(tokens) / (7 * len(table)),
    ]
    got = [token_mean(x, mask), seq_mean_token_mean(x, mask), seq_mean_token_sum(x, mask), token_sum_norm(x, mask, 7)]
    assert_close(torch.stack(got), torch.tensor(expected, dtype=torch.float64))


def test_nan_outside_the_mask_has_no_gradient():
    x = torch.tensor([[1.0, float("nan")], [float("nan"), float("nan")]], requires_grad=True)
    mask = torch.tensor([[True, False], [False, False]])
    for aggregate in (token_mean, seq_mean_token_mean, seq_mean_token_sum):
        (grad,) = torch.autograd.grad(aggregate(x, mask), x)
        assert grad.tolist() == [[1, 0], [0, 0]]
