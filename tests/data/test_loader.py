from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.data.loader import ShardedLoader
from rlhf_lightning.errors import ConfigError, DataError


@dataclass(frozen=True)
class Number:
    value: int
    weight: int

    @property
    def widths(self):
        return [self.value % 7 + 1]

    def padding_row(self):
        return replace(self, weight=0)


def collate(items, denominator):
    return [item.value for item in items], denominator, [item.weight for item in items]


def make(count=22, **options):
    return ShardedLoader([Number(i, i % 5 + 1) for i in range(count)], collate, **{"batch_size": 8} | options)


def rows(batches):
    return [row for batch in batches for row in batch[0]]


def test_an_epoch_is_a_permutation_and_the_next_one_is_another():
    loader = make(24)
    first, second = rows(loader), rows(loader)
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert first == rows(make(24)) and first != rows(make(24, seed=1))
    assert rows(make(24, shuffle=False)) == list(range(24))


def test_a_window_deals_the_rows_of_its_batches_out_by_length():
    plain, loader = make(44, seed=2), make(44, seed=2, length_window=2)
    spreads = []
    for _ in range(2):  # epochs of 5 batches: windows of 2, 2 and 1
        before, after = [sorted(batch[0]) for batch in plain], [sorted(batch[0]) for batch in loader]
        assert sorted(before[4]) == sorted(after[4]) and before != after
        for window in (slice(0, 2), slice(2, 4)):
            assert sorted(chain(*before[window])) == sorted(chain(*after[window]))
            short, long = sorted(([value % 7 for value in batch] for batch in after[window]), key=sum)
            assert max(short) <= min(long)
            spreads.append(after[window][0] == sorted(after[window], key=lambda b: sum(v % 7 for v in b))[0])
    assert rows(make(44, seed=2, length_window=2)) == rows(make(44, seed=2, length_window=2))
    assert len(set(spreads)) == 2  # the shorter batch is not always the first
    with pytest.raises(ConfigError, match="length_window is -1"):
        make(length_window=-1)


class Whole(ShardedLoader):
    whole_batches = True


def test_rows_that_do_not_fill_a_batch_make_a_smaller_one_or_wait_for_another_epoch():
    loader = make(22)
    assert [len(batch[0]) for batch in loader] == [8, 8, 6] and sorted(rows(loader)) == list(range(22))
    loader = Whole([Number(i, 1) for i in range(22)], collate, batch_size=8)
    assert len(loader) == len(list(loader)) == 2
    assert {row for _ in range(20) for row in rows(loader)} == set(range(22))


@pytest.mark.parametrize("window", [1, 0])
@pytest.mark.parametrize(("world_size", "micro"), [(1, None), (1, 2), (2, None), (2, 1), (4, 2), (8, 1)])
@pytest.mark.parametrize("count", [22, 17])  # in the last batch 6 rows, or 1
def test_a_global_batch_is_the_same_rows_and_mean_for_any_split(count, world_size, micro, window):
    whole = make(count)
    options = {"world_size": world_size, "micro_batch_size": micro, "length_window": window}
    loaders = [make(count, rank=r, **options) for r in range(world_size)]
    steps = loaders[0].accumulate
    assert len(loaders[0]) == 3 * steps
    streams = [list(loader) + list(loader) for loader in loaders]
    for index, (expected, denominator, weights) in enumerate(list(whole) + list(whole)):
        parts = [stream[index * steps + m] for stream in streams for m in range(steps)]
        counted = [value for part in parts for value, weight in zip(part[0], part[2], strict=True) if weight]
        assert sorted(counted) == sorted(expected) and all(part[0] for part in parts)
        assert denominator == sum(weights)
        # What a module computes: sum of token losses / denominator, averaged over micro-batches and ranks.
        loss = sum(Fraction(sum(v * w for v, w in zip(p[0], p[2], strict=True))) / Fraction(p[1]) for p in parts)
        mean = Fraction(sum(v * w for v, w in zip(expected, weights, strict=True)), sum(weights))
        assert float(loss / len(parts)) == pytest.approx(float(mean), rel=1e-12)


@pytest.mark.parametrize("window", [1, 0])
@pytest.mark.parametrize("stop", range(0, 27))
def test_any_micro_batch_position_resumes_the_same_stream(stop, window):
    def stream(loader, count):
        out = []
        while len(out) < count:
            for batch in loader:
                out.append(batch)
                if len(out) == count:
                    break
        return out

    options = {"micro_batch_size": 2, "world_size": 2, "rank": 1, "length_window": 2 * window}
    whole = stream(make(**options), 30)
    before, after = make(**options), make(**options)
    assert stream(before, stop) == whole[:stop]
    assert before.state_dict() == {"position": stop}
    after.load_state_dict(before.state_dict())
    assert stream(after, 30 - stop) == whole[stop:]


def test_an_iterator_that_is_made_and_dropped_costs_no_rows():
    loader = make()
    iter(loader)
    next(iter(loader))
    assert loader.state_dict() == {"position": 1}


def test_shuffling_leaves_the_global_generator_alone():
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    rows(make())
    assert torch.equal(torch.rand(1), expected)


def test_evaluation_sees_every_row_once_on_equally_many_batches():
    options = {"batch_size": 4, "micro_batch_size": 2, "shuffle": False, "training": False, "length_window": 0}
    loaders = [make(9, world_size=2, rank=rank, **options) for rank in (0, 1)]
    streams = [list(loader) for loader in loaders]
    assert [len(stream) for stream in streams] == [len(loader) for loader in loaders] == [3, 3]
    assert [batch[0] for batch in streams[0]] == [[0, 1], [4, 5], [8]]
    assert [batch[0] for batch in streams[1]] == [[2, 3], [6, 7], [8]]
    assert streams[1][2][2] == [0]  # the filler weighs nothing
    assert [batch[1] for batch in streams[0]] == [batch[1] for batch in streams[1]] == [10 / 2, 11 / 2, 4 / 2]


def test_evaluation_by_length_sees_every_row_once_beside_rows_of_its_length():
    options = {"batch_size": 4, "micro_batch_size": 2, "shuffle": False, "training": False}
    streams = [list(make(9, world_size=2, rank=rank, **options)) for rank in (0, 1)]
    # By length 6 5 4 3 | 2 1 8 0 | 7, and these in the order of their first rows 0, 3 and 7.
    assert [batch[0] for batch in streams[0]] == [[2, 1], [6, 5], [7]]
    assert [batch[0] for batch in streams[1]] == [[8, 0], [4, 3], [7]]
    assert streams[1][2][2] == [0]  # the filler weighs nothing
    assert [batch[1] for batch in streams[0]] == [batch[1] for batch in streams[1]] == [10 / 2, 12 / 2, 3 / 2]


@pytest.mark.parametrize("window", [1, 0])
def test_evaluation_is_the_same_each_time(window):
    loader = make(9, shuffle=False, training=False, length_window=window)
    next(iter(loader))
    first = rows(loader)
    assert first == rows(loader) and sorted(first) == list(range(9))
    assert window or first == list(range(9))
    assert loader.state_dict() == {"position": 0}


@pytest.mark.parametrize(
    ("batch_size", "micro", "world_size"), [(8, 3, 1), (8, 4, 3), (8, None, 3), (2, None, 4), (8, 0, 1), (0, 1, 1)]
)
def test_sizes_that_do_not_divide_are_refused_with_the_three_numbers(batch_size, micro, world_size):
    options = {"batch_size": batch_size, "micro_batch_size": micro, "world_size": world_size}
    with pytest.raises(ConfigError, match=f"{batch_size} is not a multiple of micro_batch_size {micro} x {world_size}"):
        make(24, length_window=0, **options)
    if (batch_size, micro, world_size) != (8, 3, 1):
        with pytest.raises(ConfigError, match=f"{batch_size} is not a multiple"):
            make(24, **options)


def widths(batch):
    return [value % 7 + 1 for value in batch[0]]


def test_by_length_any_number_of_micro_batches_fits_a_batch():
    loader = make(24, micro_batch_size=3)
    assert loader.accumulate == 3 and len(loader) == 9
    batches = list(loader)
    for step in range(3):
        assert len(rows(batches[3 * step : 3 * step + 3])) == 8
    assert max(len(batch[0]) * max(widths(batch)) for batch in batches) <= 3 * 7


def test_by_length_the_longest_rows_come_first_and_ranks_get_neighbours():
    options = {"batch_size": 8, "micro_batch_size": 2, "world_size": 2, "shuffle": False}
    streams = [list(make(8, rank=rank, **options)) for rank in (0, 1)]
    # Lengths 1 .. 7 and 1: groups 7 6 | 5 4 | 3 2 | 1 1.
    assert [widths(batch) for batch in streams[0]] == [[6, 7], [2, 3]]
    assert [widths(batch) for batch in streams[1]] == [[4, 5], [1, 1]]


@given(st.lists(st.integers(1, 300), min_size=12, max_size=12), st.sampled_from([1, 2, 3, 4, 6, 12]))
@settings(deadline=None)
def test_by_length_no_micro_batch_needs_more_memory_than_its_rows_at_full_length(lengths, micro):
    items = [Row(length) for length in lengths]
    for batch, _, _ in ShardedLoader(items, collate, batch_size=12, micro_batch_size=micro):
        assert len(batch) * max(batch) <= micro * max(lengths)


class Row(Number):
    """A row as long as its value."""

    def __init__(self, length):
        super().__init__(length, 1)

    @property
    def widths(self):
        return [self.value]


def test_fewer_rows_than_a_batch_would_be_no_training():
    with pytest.raises(DataError, match=r"7 rows do not fill one batch of 8; add rows"):
        make(7)
    with pytest.raises(DataError, match="0 rows"):
        make(0, training=False)
