import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.functional.lengths import cut

ROWS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 3)), min_size=1, max_size=9)


def padded(groups, lengths, sequences=None):
    """Padded tokens of each group."""
    count = sequences or [1] * len(lengths)
    return [max(lengths[i] for i in group) * sum(count[i] for i in group) for group in groups]


def even(lengths, pieces):
    """The same in an even cut in the order of the rows."""
    rows = -(-len(lengths) // pieces)
    return padded([range(i, min(i + rows, len(lengths))) for i in range(0, len(lengths), rows)], lengths)


def heavy_tailed(rows, median, seed):
    """Lognormal lengths, sigma 0.8, in 4 .. 512."""
    noise = torch.randn(rows, generator=torch.Generator().manual_seed(seed))
    return (median * (0.8 * noise).exp()).round().clamp(4, 512).int().tolist()


@given(ROWS, st.data())
@settings(deadline=None)
def test_no_other_cut_of_the_sorted_rows_within_the_limit_pads_less(rows, data):
    lengths, sequences = map(list, zip(*rows, strict=True))
    pieces = data.draw(st.integers(1, len(rows)))
    limit = -(-len(rows) // pieces) * max(sequences) * max(lengths)
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    ways = []
    for inner in itertools.combinations(range(1, len(rows)), pieces - 1):
        members = [order[a:b] for a, b in itertools.pairwise([0, *inner, len(rows)])]
        if max(padded(members, lengths, sequences)) <= limit:
            ways.append(sum(padded(members, lengths, sequences)))
    assert sum(padded(cut(lengths, pieces, sequences=sequences), lengths, sequences)) == min(ways)


def test_no_grouping_in_any_order_pads_less():
    for seed in range(20):
        lengths = torch.randint(1, 40, (6,), generator=torch.Generator().manual_seed(seed)).tolist()
        ways = []
        for owners in itertools.product(range(3), repeat=6):
            members = [[i for i, owner in enumerate(owners) if owner == piece] for piece in range(3)]
            sizes = padded(members, lengths) if all(members) else [2**30]
            ways.append((sum(sizes), max(sizes)))
        least, largest = min(ways)
        assert sum(padded(cut(lengths, 3), lengths)) == least or largest > 2 * max(lengths)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=80), st.data())
@settings(deadline=None)
def test_every_row_is_in_one_group_and_none_needs_more_memory_than_an_even_cut(lengths, data):
    pieces = data.draw(st.integers(1, len(lengths)))
    groups = cut(lengths, pieces)
    assert len(groups) == pieces and all(groups)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    sizes = padded(groups, lengths)
    assert max(sizes) <= -(-len(lengths) // pieces) * max(lengths)
    assert sizes == sorted(sizes, reverse=True)


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=40), st.data())
@settings(deadline=None)
def test_parts_that_are_padded_apart_stay_within_the_full_width(rows, data):
    pieces = data.draw(st.integers(1, len(rows)))
    widths = [len(g) * sum(max(rows[i][part] for i in g) for part in (0, 1)) for g in cut(rows, pieces)]
    assert len(widths) == pieces
    assert max(widths) <= -(-len(rows) // pieces) * sum(max(row[part] for row in rows) for part in (0, 1))


@pytest.mark.parametrize("median", [64, 128])
@pytest.mark.parametrize("rows", [32, 64])
def test_sixteen_groups_of_heavy_tailed_lengths_hold_almost_no_padding(rows, median):
    totals = torch.zeros(3)
    for seed in range(20):
        lengths = heavy_tailed(rows, median, seed)
        cells = sum(padded(cut(lengths, 16), lengths))
        assert 1 - sum(lengths) / cells < 0.05
        totals += torch.tensor([sum(lengths), cells, sum(even(lengths, 16))])
    assert 1 - totals[0] / totals[1] < 0.04
    assert 1 - totals[0] / totals[2] > 0.25  # what rows in any order pad


@pytest.mark.parametrize("pieces", [0, 4])
def test_groups_cannot_be_empty(pieces):
    with pytest.raises(ValueError, match=f"3 rows cannot be cut into {pieces} groups"):
        cut([1, 2, 3], pieces)
