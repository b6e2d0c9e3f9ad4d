import logging

import pytest
from lightning.pytorch import Callback

from rlhf_lightning.callbacks import History, StopEarly
from rlhf_lightning.callbacks.progress import why_early
from tests.support.logging_modules import Refinement, SaveAt, Validated, loader, trainer

KL = [3.0, 2.0, 2.5, 2.5, 2.5, 2.5]  # the best comes with the second rollout


def test_rollouts_end_when_the_number_no_longer_gets_better(tmp_path):
    module = Refinement([0.0] * 6, KL)
    fit = trainer([StopEarly("objective/kl", patience=2)], tmp_path)
    fit.fit(module, loader(6))
    assert module.rollouts == 4
    assert why_early(fit).startswith("StopEarly: Monitored metric objective/kl did not improve in the last 2 records")


class EverySecond(Callback):
    """A monitor that scores every second rollout, each time better."""

    def on_train_batch_end(self, trainer, module, *_):
        if module.rollouts % 2 == 0:
            module.log("monitor/gold", float(module.rollouts))


def test_a_rollout_that_does_not_log_the_number_is_no_look(tmp_path):
    module = Refinement([0.0] * 6, KL)
    trainer([EverySecond(), StopEarly("monitor/gold", "max", patience=1)], tmp_path).fit(module, loader(6))
    assert module.rollouts == 6


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # a plain loader has no position
def test_a_resumed_fit_goes_on_counting(tmp_path):
    first = [StopEarly("objective/kl", patience=2), SaveAt(3, tmp_path / "at3.ckpt")]
    trainer(first, tmp_path).fit(Refinement([0.0] * 6, KL), loader(6))
    resumed = Refinement([0.0] * 6, KL)
    parts = [StopEarly("objective/kl", patience=2)]
    trainer(parts, tmp_path).fit(resumed, loader(6), ckpt_path=tmp_path / "at3.ckpt")
    assert resumed.rollouts == 4


def test_other_stages_look_after_each_validation(tmp_path):
    history = History(tmp_path / "sft.csv")
    fit = trainer([StopEarly("val/loss", patience=1), history], tmp_path, val_check_interval=2)
    fit.fit(Validated(), loader(10), loader(1))  # the loss rises with the steps
    assert history.rows[-1]["step"] == 4


def test_a_stage_without_the_number_runs_to_its_end_and_says_so(tmp_path, caplog):
    module = Refinement([0.0] * 6, KL)
    with caplog.at_level(logging.INFO):
        trainer([StopEarly("val/los")], tmp_path).fit(module, loader(6))
    assert module.rollouts == 6
    assert "val/los is not logged here, so nothing could end early; logged are" in caplog.text
    assert "objective/kl" in caplog.text
