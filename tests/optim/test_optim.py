import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_lightning.config.allowlist import check_names, check_objects
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.optim import adam
from rlhf_lightning.optim.adam import TF1Adam, build_optimizer
from tests.support.examples import few_examples


def walk(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    return parameter.detach()


def a_parameter(value=1.0, dtype=torch.float64):
    return torch.nn.Parameter(torch.tensor([value], dtype=dtype))


@few_examples
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6), st.floats(1e-8, 0.1))
def test_steps_are_those_of_the_formula(gradients, eps):
    expected, m, v = 1.0, 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        expected -= 0.01 * math.sqrt(1 - 0.95**t) / (1 - 0.8**t) * m / (math.sqrt(v) + eps)
    parameter = a_parameter()
    optimizer = TF1Adam([parameter], lr=0.01, betas=(0.8, 0.95), eps=eps)
    assert_close(walk(optimizer, parameter, gradients).item(), expected)


def test_without_eps_it_is_the_adam_of_torch():
    mine, theirs = a_parameter(), a_parameter()
    gradients = [0.3, -2.0, 1e-6, 5.0]
    got = walk(TF1Adam([mine], lr=0.1, eps=0.0), mine, gradients)
    assert_close(got, walk(torch.optim.Adam([theirs], lr=0.1, eps=0.0), theirs, gradients))


def test_eps_holds_back_tiny_gradients_more_than_in_torch():
    steps = {}
    for kind in (TF1Adam, torch.optim.Adam):
        parameter = a_parameter(0.0)
        steps[kind] = -walk(kind([parameter], lr=1.0, eps=1e-5), parameter, [1e-5]).item()
    assert_close(steps[torch.optim.Adam], 0.5)
    assert_close(steps[TF1Adam], 1 / (1 + 1 / math.sqrt(1 - 0.999)))


def test_it_finds_the_bottom_of_a_bowl_with_a_closure():
    parameter = a_parameter(3.0)
    optimizer = TF1Adam([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (parameter - 1).square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4
    for _ in range(300):
        optimizer.step(closure)
    assert_close(parameter.item(), 1.0, atol=1e-2, rtol=0)


def test_a_resumed_optimizer_takes_the_same_steps():
    whole, half = a_parameter(), a_parameter()
    gradients = [0.3, -2.0, 0.1, 5.0]
    expected = walk(TF1Adam([whole], lr=0.1), whole, gradients)
    first = TF1Adam([half], lr=0.1)
    walk(first, half, gradients[:2])
    second = TF1Adam([half], lr=0.7)
    second.load_state_dict(first.state_dict())
    assert torch.equal(walk(second, half, gradients[2:]), expected)


def test_groups_have_their_own_rate_and_parameters_without_gradient_rest():
    fast, slow, idle = a_parameter(), a_parameter(), a_parameter()
    optimizer = TF1Adam([{"params": [fast], "lr": 0.5}, {"params": [slow, idle]}], lr=0.1, eps=0.0)
    fast.grad, slow.grad = torch.ones(1).double(), torch.ones(1).double()
    assert optimizer.step() is None
    assert_close((fast.item(), slow.item(), idle.item()), (0.5, 0.9, 1.0))
    assert idle not in optimizer.state


@pytest.mark.parametrize("knobs", [{"lr": -1.0}, {"eps": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}])
def test_invalid_knobs_are_refused(knobs):
    with pytest.raises(ConfigError):
        TF1Adam([a_parameter()], **knobs)


ADAMS = [torch.optim.Adam, torch.optim.AdamW]


@pytest.mark.parametrize("kind", [*ADAMS, partial(torch.optim.AdamW, lr=0.1, weight_decay=0.3)])
def test_adam_is_fused_on_a_gpu_and_takes_the_same_steps(kind, monkeypatch):
    plain, fused = a_parameter(), a_parameter()
    one = build_optimizer(kind, [{"params": [plain], "lr": 0.2}])
    assert not one.defaults["fused"]  # on a CPU nothing changes
    monkeypatch.setattr(adam, "_fusible", lambda parameters: True)
    other = build_optimizer(kind, [{"params": [fused], "lr": 0.2}])
    assert other.defaults["fused"] and other.param_groups[0]["lr"] == 0.2
    gradients = [0.3, -2.0, 1e-6, 5.0]
    assert_close(walk(other, fused, gradients), walk(one, plain, gradients), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kind", "scaled"),
    [(kind, True) for kind in ADAMS]
    + [(partial(kind, **given), False) for kind in ADAMS for given in ({"fused": False}, {"foreach": True})]
    + [(kind, False) for kind in (TF1Adam, torch.optim.SGD, lambda groups: torch.optim.AdamW(groups))],
)
def test_what_unscales_too_late_or_was_chosen_is_not_fused(kind, scaled, monkeypatch):
    monkeypatch.setattr(adam, "_fusible", lambda parameters: True)
    assert not build_optimizer(kind, [{"params": [a_parameter()]}], scaled=scaled).defaults.get("fused")


def test_all_parameters_have_to_be_on_the_gpu():
    class There(NamedTuple):
        device: torch.device
        floats: bool = True

        def is_floating_point(self):
            return self.floats

    here, there = There(torch.device("cpu")), There(torch.device("cuda"))
    found = [adam._fusible(p) for p in ([there, there], [there, here], [there, there._replace(floats=False)], [])]
    assert found == [True, False, False, False]


def test_a_config_may_name_it():
    node = {"optimizer": {"_target_": "rlhf_lightning.optim.adam.TF1Adam", "_partial_": True}}
    check_names(node)
    check_objects(node)
