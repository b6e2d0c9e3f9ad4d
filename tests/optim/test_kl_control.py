import math
import random

import pytest

from rlhf_lightning.errors import ConfigError, NumericalError
from rlhf_lightning.optim.kl_controllers import AdaptiveKL, FixedKL, KLController, LogSpaceKL

BALANCE = 0.05  # the beta at which `train` settles on 6 nats per response


def train(controller, *, iterations=120, speed=1.0, momentum=0.5, quiet=0, seed=0):
    """KL after each iteration of a made-up policy that answers beta late.

    d = sqrt(KL) is pushed up by the score and back by beta: d += speed * (push - 2 beta d), smoothed by momentum, so
    that it settles at push / (2 beta). With little beta it moves 0.245 an iteration: KL goes from 7 to 26 in ten.
    For `quiet` iterations it hardly moves, like one whose critic still has to learn. KL is measured with 10 % noise.
    """
    noise = random.Random(seed)
    distance, velocity, history = 0.05, 0.0, []
    for iteration in range(iterations):
        history.append(distance**2)
        controller.update(distance**2 * (1 + 0.1 * noise.gauss(0, 1)), num_sequences=64)
        push = 2 * BALANCE * math.sqrt(6) * (1 if iteration >= quiet else 0.04)
        velocity = momentum * velocity + (1 - momentum) * speed * (push - 2 * controller.coef * distance)
        distance = max(distance + velocity, 0.0)
    return history


@pytest.mark.parametrize("speed", [1.0, 3.0])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_log_space_controller_reaches_its_target_from_ten_times_too_much_and_too_little(factor, momentum, speed):
    for seed in range(5):
        controller = LogSpaceKL(init_coef=factor * BALANCE, floor=0.05)
        settled = train(controller, momentum=momentum, speed=speed, seed=seed, iterations=220)[120:]
        assert sum(settled) / len(settled) == pytest.approx(6, rel=0.2)
        assert max(settled) < 2 * 6


def test_log_space_controller_catches_up_after_a_quiet_start():
    def above(controller):
        return sum(kl > 12 for kl in train(controller, iterations=160, quiet=60))

    # the same horizon in rollouts as the run this replays: beta fell eight-fold while KL was low, then KL ran away
    slow = AdaptiveKL(init_coef=BALANCE, target=6.0, horizon=64 * 6)
    assert above(slow) > 20
    assert above(LogSpaceKL(init_coef=BALANCE)) < 12


def test_log_space_controller_brakes_before_the_target_when_kl_rises_fast():
    controller = LogSpaceKL(init_coef=1.0, target=6.0)
    for kl in (3.0, 5.5):
        controller.update(kl, num_sequences=64)
    assert controller.coef > 1.0


def test_log_space_controller_raises_faster_than_it_lowers():
    up, down = LogSpaceKL(init_coef=1.0), LogSpaceKL(init_coef=1.0)
    up.update(6.0 * 2, num_sequences=1)
    down.update(6.0 / 2, num_sequences=1)
    assert up.coef > 1 / down.coef > 1


@pytest.mark.parametrize("kl", [-50.0, 0.0, 1e-30, 1e30, math.inf])
def test_one_rollout_moves_beta_by_a_bounded_factor(kl):
    controller = LogSpaceKL(init_coef=1.0, max_step=0.5)
    for value in (6.0, kl, -kl):
        before = controller.coef
        controller.update(value, num_sequences=10**6)
        assert abs(math.log(controller.coef / before)) <= 0.5 + 1e-12


@pytest.mark.filterwarnings("ignore:kl. kl_coef is at its ceiling")
def test_beta_never_leaves_its_bounds():
    controller = LogSpaceKL(init_coef=0.1, floor=0.5, ceiling=3.0)
    for kl, bound in ((0.0, 0.05), (100.0, 0.3)):
        for _ in range(100):
            controller.update(kl, num_sequences=1)
        assert controller.coef == pytest.approx(bound)
    ziegler = AdaptiveKL(init_coef=0.1, horizon=10, min_coef=0.05, max_coef=0.3)
    for kl, bound in ((0.0, 0.05), (100.0, 0.3)):
        for _ in range(100):
            ziegler.update(kl, num_sequences=10)
        assert ziegler.coef == bound


def test_a_rollout_larger_than_the_horizon_leaves_a_beta_that_can_grow_again():
    controller = AdaptiveKL(init_coef=1.0, horizon=10)
    controller.update(-5.0, num_sequences=1000)
    assert controller.coef == pytest.approx(0.1)


@pytest.mark.parametrize("make", [FixedKL, AdaptiveKL, LogSpaceKL])
def test_a_resumed_controller_goes_on_as_if_nothing_had_happened(make):
    whole, first, second = make(), make(), make()
    assert isinstance(whole, KLController)
    kls = [1.0, 9.0, 30.0, 4.0, 5.0, -1.0]
    for kl in kls:
        whole.update(kl, num_sequences=512)
    for kl in kls[:3]:
        first.update(kl, num_sequences=512)
    second.load_state_dict(first.state_dict())
    for kl in kls[3:]:
        second.update(kl, num_sequences=512)
    assert second.coef == whole.coef
    assert second.state_dict() == whole.state_dict()


def test_a_fresh_controller_resumes_fresh():
    controller = LogSpaceKL()
    controller.update(50.0, num_sequences=1)
    controller.load_state_dict(LogSpaceKL().state_dict())
    assert controller.state_dict() == LogSpaceKL().state_dict()


@pytest.mark.parametrize("make", [FixedKL, AdaptiveKL, LogSpaceKL])
def test_a_kl_that_is_not_a_number_stops_training(make):
    with pytest.raises(NumericalError, match="NaN"):
        make().update(math.nan, num_sequences=1)


def test_fixed_controller_has_no_target_and_may_be_free():
    assert FixedKL(0.0).coef == 0
    assert FixedKL().target is None


@pytest.mark.parametrize(
    ("make", "knobs", "key"),
    [
        (LogSpaceKL, {"lower_gain": 0.0}, "kl.lower_gain"),
        (FixedKL, {"coef": -0.1}, "coef"),
        (FixedKL, {"coef": math.nan}, "coef"),
        (AdaptiveKL, {"init_coef": 0.0}, "init_coef"),
        (AdaptiveKL, {"target": 0.0}, "target"),
        (AdaptiveKL, {"horizon": 0}, "horizon"),
        (AdaptiveKL, {"clip": 2.0}, "clip"),
        (AdaptiveKL, {"min_coef": 0.2}, "min_coef"),
        (AdaptiveKL, {"max_coef": 0.1}, "max_coef"),
        (LogSpaceKL, {"init_coef": 0.0}, "init_coef"),
        (LogSpaceKL, {"target": -1.0}, "target"),
        (LogSpaceKL, {"max_step": 0.0}, "max_step"),
        (LogSpaceKL, {"change_gain": -1.0}, "change_gain"),
        (LogSpaceKL, {"raise_gain": 0.0}, "raise_gain"),
        (LogSpaceKL, {"floor": 2.0}, "floor"),
        (LogSpaceKL, {"ceiling": 0.5}, "ceiling"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(make, knobs, key):
    with pytest.raises(ConfigError, match=key):
        make(**knobs)
