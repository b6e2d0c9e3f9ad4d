"""Means over micro-batches and ranks: one global count, whatever the split."""

import pytest
import torch
from torch import nn

from rlhf_lightning.metrics.means import Means
from tests.support import means_worker, pair

COUNTS = {"": "num_pairs", "loss": "num_prompts"}


def sums(pairs, prompts, loss, hits):
    return {
        "num_pairs": torch.tensor(pairs), "num_prompts": torch.tensor(prompts),
        "loss": torch.tensor(loss), "accuracy": torch.tensor(hits),
    }  # fmt: skip


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.means, self.layer = Means(COUNTS), nn.Linear(2, 2)


def test_sums_are_divided_by_their_own_count():
    means = Means(COUNTS)
    means.update(sums(3, 1, 0.5, 2))
    means.update(sums(1, 1, 1.0, 1))
    assert means.compute() == {"accuracy": 0.75, "loss": 0.75, "num_pairs": 4.0, "num_prompts": 2.0}


def test_a_count_of_zero_makes_zeros_of_its_sums():
    means = Means(COUNTS)
    means.update(sums(0, 0, 0.0, 0))
    assert set(means.compute().values()) == {0.0}


def test_small_numbers_are_not_lost_beside_large_ones():
    means = Means({"": "count"})
    for value in (1e8, 1.0, -1e8):  # float32 would forget the 1
        means.update({"x": torch.tensor(value), "count": torch.tensor(1)})
    assert means.compute()["x"] == pytest.approx(1 / 3, rel=1e-12)


@pytest.mark.parametrize("convert", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_a_model_in_fewer_bits_has_exact_means(convert):
    parent = Parent()
    convert(parent)
    for _ in range(3):
        parent.means.update(sums(1001, 257, 0.125, 1))  # neither count is a bfloat16
    assert parent.means.compute()["num_pairs"] == 3003.0 and parent.means.compute()["num_prompts"] == 771.0
    parent.means.reset()
    parent.means.update(sums(1001, 257, 0.125, 1))
    assert parent.means.compute()["num_pairs"] == 1001.0


def test_sums_follow_the_model_to_its_device():
    parent = Parent().to("meta")
    parent.means.update(sums(1, 1, 0.5, 1))
    assert parent.means.sums.device.type == "meta"
    parent.means.reset()
    assert parent.means.sums.device.type == "meta"


def test_sums_belong_to_no_checkpoint():
    parent = Parent()
    parent.means.update(sums(1, 1, 0.5, 1))
    assert set(parent.state_dict()) == {"layer.weight", "layer.bias"}


def test_names_that_change_between_micro_batches_are_an_error():
    means = Means(COUNTS)
    means.update(sums(1, 1, 0.5, 1))
    with pytest.raises(ValueError, match=r"gave the sums .*other.* the ones before it .*accuracy"):
        means.update(sums(1, 1, 0.5, 1) | {"other": torch.tensor(1)})
    means.reset()
    means.update({"num_pairs": torch.tensor(1)})
    assert means.compute() == {"num_pairs": 1.0}


def test_two_ranks_have_one_mean_and_one_that_trains_alone_waits_for_none(tmp_path):
    assert pair.launch("tests.support.means_worker", str(tmp_path), log=tmp_path, seconds=60) == [0, 0], (
        tmp_path / "rank0.log"
    ).read_text()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    alone = Means(COUNTS)
    for rank in range(2):
        for batch in means_worker.BATCHES[rank]:
            alone.update(batch)
    assert first["both"] == pytest.approx(alone.compute(), rel=1e-12)
    assert first["padding only"] == {"accuracy": 2 / 3, "loss": 0.25, "num_pairs": 3.0, "num_prompts": 2.0}
