import torch
from torch.testing import assert_close

from rlhf_lightning.functional.ratios import (
    geometric_ratio,
    masked_sequence_weights,
    masked_token_weights,
    product_ratio,
    truncated_sequence_weights,
    truncated_token_weights,
)

MASK = torch.tensor([[True, True, False], [False, False, False]])
NEW = torch.tensor([[8.0, 0.5, 1.0], [1.0, 1.0, 1.0]]).log()
OLD = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).log()  # -inf outside the mask


def test_sequence_ratios_use_the_counted_tokens():
    assert_close(product_ratio(NEW, OLD, MASK), torch.tensor([4.0, 1.0]))
    assert_close(geometric_ratio(NEW, OLD, MASK), torch.tensor([2.0, 1.0]))


def test_truncation_caps_and_masking_drops():
    assert_close(truncated_token_weights(NEW, OLD, MASK), torch.tensor([[2.0, 0.5, 0.0], [0.0, 0.0, 0.0]]))
    assert_close(masked_token_weights(NEW, OLD, MASK, low=0.4), torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]))
    assert_close(truncated_sequence_weights(NEW, OLD, MASK), torch.tensor([[2.0], [1.0]]))
    assert_close(masked_sequence_weights(NEW, OLD, MASK), torch.tensor([[0.0], [1.0]]))
    assert_close(masked_sequence_weights(NEW, OLD, MASK, high=5.0), torch.tensor([[4.0], [1.0]]))
