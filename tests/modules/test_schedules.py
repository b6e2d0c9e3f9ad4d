"""Schedules of torch and transformers run for as many steps as the run has, in SFT and PPO."""

from functools import partial

import pytest
import torch
import transformers
from torch.optim import lr_scheduler

from rlhf_lightning.data import DemonstrationData
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules import SFTModule
from rlhf_lightning.optim import schedules
from tests.modules.test_ppo import fit, module
from tests.modules.test_sft_and_reward import trainer
from tests.support import tiny

STEPS = 4  # of both runs below
LINEAR, COSINE = transformers.get_linear_schedule_with_warmup, transformers.get_cosine_schedule_with_warmup
SCHEDULES = {  # what the user binds, and the same with the length written out
    "ours": (partial(schedules.linear), {"total_steps": STEPS}),
    "cosine": (lr_scheduler.CosineAnnealingLR, {"T_max": STEPS}),
    "linear": (partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.25), {"total_iters": STEPS}),
    "polynomial": (lr_scheduler.PolynomialLR, {"total_iters": STEPS}),
    "one_cycle": (partial(lr_scheduler.OneCycleLR, max_lr=0.01), {"total_steps": STEPS}),
    "exponential": (partial(lr_scheduler.ExponentialLR, gamma=0.5), {}),
    "of_its_own": (partial(lr_scheduler.CosineAnnealingLR, T_max=40), {}),
    "hf_linear": (partial(LINEAR, num_warmup_steps=2), {"num_training_steps": STEPS}),
    "hf_cosine": (partial(COSINE, num_warmup_steps=0), {"num_training_steps": STEPS}),
    "hf_constant": (transformers.get_constant_schedule, {}),
}  # fmt: skip
ADAM = partial(torch.optim.AdamW, lr=1e-3)


def expected(factory, length):
    optimizer = ADAM([torch.nn.Parameter(torch.zeros(1))])
    schedule = factory(optimizer, **length)
    for _ in range(STEPS):
        optimizer.step()
        schedule.step()
    return optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_sft_ends_at_the_learning_rate_of_the_schedule(name, tmp_path):
    factory, length = SCHEDULES[name]
    (tmp_path / "rows.jsonl").write_text('{"prompt": "the food", "completion": " was good"}\n' * 2 * STEPS)
    data = DemonstrationData(
        str(tmp_path / "rows.jsonl"), None, tiny.tokenizer(), batch_size=2, validation_fraction=0.0
    )
    sft = SFTModule(tiny.policy(), tiny.tokenizer(), ADAM, factory)
    trainer().fit(sft, datamodule=data)
    assert sft.trainer.global_step == STEPS
    assert sft.optimizers().param_groups[0]["lr"] == pytest.approx(expected(factory, length), abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ppo_ends_at_the_learning_rate_of_the_schedule(name):
    factory, length = SCHEDULES[name]
    ppo = module(ppo_epochs=2)
    ppo._optimizer, ppo._scheduler = ADAM, factory
    fit(ppo, steps=2)
    assert ppo.optimizer_steps == STEPS
    assert ppo.optimizers().param_groups[0]["lr"] == pytest.approx(expected(factory, length), abs=1e-12)


@pytest.mark.parametrize(
    ("factory", "optimizer", "says"),
    [
        (lr_scheduler.OneCycleLR, ADAM, r"sft\.scheduler: OneCycleLR cannot be made .*max_lr.*\+sft\.scheduler\.NAME"),
        (LINEAR, ADAM, r"sft\.scheduler: .*num_warmup_steps"),
        (lr_scheduler.ReduceLROnPlateau, ADAM, r"ReduceLROnPlateau waits for a metric"),
        (partial(schedules.linear, warm=1), ADAM, r"sft\.scheduler: linear .*warm"),
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: float("nan")), ADAM, r"gives the learning rate nan"),
        (lambda o, **named: {}["total"], ADAM, r"sft\.scheduler: <lambda> cannot be made \(KeyError: 'total'\)"),
        (lambda o: {"scheduler": o}, ADAM, r"sft\.scheduler: <lambda> returned a dict; wanted: a schedule of torch"),
        (None, lambda groups: groups, r"sft\.optimizer: <lambda> returned a list; wanted: a torch Optimizer"),
        (None, lambda groups: groups[0]["p"], r"sft\.optimizer: <lambda> cannot be called .*KeyError: 'p'"),
        (None, partial(torch.optim.AdamW, lrate=1), r"sft\.optimizer: AdamW cannot be called .*lrate"),
    ],
)
def test_what_cannot_work_is_known_before_a_model_is_there(factory, optimizer, says):
    with pytest.raises(ConfigError, match=says):
        schedules.check_schedule(factory, optimizer, "sft.scheduler")


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_works_passes_the_check(name):
    schedules.check_schedule(SCHEDULES[name][0], ADAM, "sft.scheduler")


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_schedule_with_a_share_of_the_steps_is_not_tried_where_that_is_none(share):
    schedules.check_schedule(partial(lr_scheduler.OneCycleLR, max_lr=0.1, pct_start=share), ADAM, "sft.scheduler")


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_state_of_a_schedule_is_plain_enough_for_a_checkpoint(name, tmp_path):
    from rlhf_lightning.checkpoint.io import DurableCheckpointIO

    factory, _ = SCHEDULES[name]
    schedule = schedules.make_schedule(factory, ADAM([torch.nn.Parameter(torch.zeros(1))]), STEPS)
    saved = {"lr_schedulers": [schedule.state_dict()]}
    files = DurableCheckpointIO("")
    files.save_checkpoint(saved, tmp_path / "step-1")
    again = schedules.make_schedule(factory, ADAM([torch.nn.Parameter(torch.zeros(1))]), STEPS)
    again.load_state_dict(files.load_checkpoint(tmp_path / "step-1")["lr_schedulers"][0])
    assert again.state_dict() == schedule.state_dict()


def factors(schedule, steps, **named):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = schedule(optimizer, 8, **named)
    return [made.lr_lambdas[0](step) for step in steps]


@pytest.mark.parametrize(
    ("schedule", "named", "at", "want"),
    [
        (schedules.linear, {"final": 0.1}, (0, 1, 2, 5, 8, 9), (0.5, 1.0, 1.0, 0.55, 0.1, 0.1)),
        (schedules.linear, {}, (5, 8), (0.5, 0.0)),
        (schedules.cosine, {"final": 0.1}, (0, 1, 2, 4, 5, 8, 9), (0.5, 1.0, 1.0, 0.775, 0.55, 0.1, 0.1)),
        (schedules.constant, {}, (0, 1, 2, 8), (0.5, 1.0, 1.0, 1.0)),
        (schedules.constant, {"warmup_ratio": 1.5 / 8}, (0, 1), (2 / 3, 1.0)),
        (schedules.constant, {"warmup_ratio": 0.1}, (0, 1), (1.0, 1.0)),
    ],
)
def test_eight_steps_with_two_of_warm_up_by_hand(schedule, named, at, want):
    assert factors(schedule, at, **{"warmup_ratio": 0.25} | named) == pytest.approx(want)


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine, schedules.constant])
def test_shares_of_the_steps_and_of_the_rate_have_limits(schedule):
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="warmup_ratio"):
            factors(schedule, (), warmup_ratio=share)
    if schedule is not schedules.constant:
        factors(schedule, (), final=0.5)
        with pytest.raises(ConfigError, match="final"):
            factors(schedule, (), final=-0.1)
