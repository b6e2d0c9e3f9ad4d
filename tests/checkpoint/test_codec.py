"""Checkpoints as safetensors and JSON."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from rlhf_lightning.checkpoint.codec import TENSORS, TREE, read_state, write_state
from rlhf_lightning.errors import CheckpointError

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def round_trip(folder, state):
    write_state(folder, state)
    return read_state(folder)


def test_an_optimizer_and_odd_values_come_back_as_they_were(tmp_path):
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    odd = (1, 2.5, None, True, "text", [], {}, -math.inf)
    ranks = {0: "a", (1, 2): 3}
    state = {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "odd": odd, "rank": ranks}
    back = round_trip(tmp_path, state)
    assert back["odd"] == odd and back["rank"] == state["rank"]
    assert back["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    for name, moment in optimizer.state_dict()["state"][0].items():
        assert torch.equal(back["optimizer"]["state"][0][name], moment)
    model.load_state_dict(back["weights"])
    optimizer.load_state_dict(back["optimizer"])


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_tensors_of_every_kind_and_shape_come_back_and_others_can_read_them(tmp_path, dtype):
    tensors = {str(shape): torch.arange(24).reshape(2, 3, 4)[tuple(slice(n) for n in shape)].to(dtype)
               for shape in [(), (0,), (2, 3), (1, 2, 3)]}  # fmt: skip
    back = round_trip(tmp_path, {"t": tensors, "view": torch.arange(6).reshape(2, 3).T, "scalar": torch.tensor(3.5)})
    for name, tensor in tensors.items():
        assert back["t"][name].dtype == dtype and torch.equal(back["t"][name], tensor)
    assert back["view"].tolist() == [[0, 3], [1, 4], [2, 5]] and back["scalar"].shape == ()
    assert torch.equal(load_file(tmp_path / TENSORS)["t.(2, 3)"], tensors["(2, 3)"])


def test_tied_tensors_are_stored_once(tmp_path):
    weight = torch.ones(1000)
    back = round_trip(tmp_path, {"a": weight, "b": weight, "c": weight[:500]})
    assert torch.equal(back["b"], weight) and back["c"].shape == (500,)
    assert (tmp_path / TENSORS).stat().st_size < 1500 * 4 + 500


keys = st.text(max_size=6) | st.integers() | st.sampled_from(["tensor", "tuple", "pairs"])
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.text(max_size=6) | st.integers() | st.sampled_from(["tensor", "tuple", "pairs"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=6), plain, max_size=4))
def test_any_plain_state_comes_back(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("plain")
    assert round_trip(folder, state) == state


def test_tensors_whose_places_read_the_same_are_kept_apart(tmp_path):
    state = {
        "a.b": torch.ones(2),
        "a": {"b": torch.zeros(2)},
        0: torch.zeros(0),
        "0": torch.zeros(0, 3),
        "": torch.ones(1),
    }
    found = round_trip(tmp_path, state)
    assert found["a.b"].tolist() == [1, 1] and found["a"]["b"].tolist() == [0, 0]
    assert found[0].shape == (0,) and found["0"].shape == (0, 3) and found[""].tolist() == [1]


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"callbacks\.mine\.path is a pathlib\.\w+Path; a checkpoint holds"):
        write_state(tmp_path, {"callbacks": {"mine": {"path": tmp_path}}})
    with pytest.raises(CheckpointError, match=r"x\.1: a tensor of torch\.complex64"):
        write_state(tmp_path, {"x": [1, torch.zeros(1, dtype=torch.complex64)]})


@pytest.mark.parametrize("file", [TREE, TENSORS])
def test_damage_is_an_error_of_ours(tmp_path, file):
    write_state(tmp_path, {"a": torch.ones(3), "b": [1, 2]})
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="not readable as a checkpoint"):
        read_state(tmp_path)
