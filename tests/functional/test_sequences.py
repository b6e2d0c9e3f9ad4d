import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.functional.sequences import last_index, left_pad, position_ids, right_pad
from tests.support.examples import few_examples

ragged = st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=4)
masks = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4)


@few_examples
@given(ragged)
def test_padding_keeps_every_token_in_order_on_the_right_side(sequences):
    for pad, side in ((left_pad, -1), (right_pad, 1)):
        ids, mask = pad(sequences, 0)
        assert [row[m].tolist() for row, m in zip(ids, mask, strict=True)] == sequences
        assert (ids[~mask] == 0).all()
        edges = mask.long().diff(dim=1) * side
        assert (edges <= 0).all()  # counted columns are contiguous at the expected end


@few_examples
@given(ragged)
def test_positions_count_the_tokens_that_are_real(sequences):
    for pad in (left_pad, right_pad):
        _, mask = pad(sequences, 0)
        positions = position_ids(mask)
        assert (positions >= 0).all()
        for row, m, tokens in zip(positions, mask, sequences, strict=True):
            assert row[m].tolist() == list(range(len(tokens)))


@few_examples
@given(masks)
def test_last_index_is_what_a_loop_finds(rows):
    mask = torch.tensor(rows)
    last = [max((i for i, m in enumerate(row) if m), default=0) for row in rows]
    assert last_index(mask).tolist() == last


def test_the_pad_id_may_be_a_real_token():
    ids, mask = left_pad([[7, 2], [2]], pad_id=2)
    assert ids.tolist() == [[7, 2], [2, 2]]
    assert mask.tolist() == [[True, True], [False, True]]
