import csv

import lightning.pytorch as pl
import pytest
import torch

from rlhf_lightning.callbacks import History, ValidateFirst
from tests.support.logging_modules import Refinement, SaveAt, Supervised, Validated, loader, trainer


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_step_and_each_validation_becomes_one_row(tmp_path):
    history = History(tmp_path / "deep" / "sft.csv")
    trainer([history], tmp_path, val_check_interval=2).fit(Validated(), loader(4), loader(1))
    rows = rows_of(history.path)
    assert [(row["step"], row["kind"]) for row in rows] == [
        ("1", "train"),
        ("2", "train"),
        ("2", "validation"),
        ("3", "train"),
        ("4", "train"),
        ("4", "validation"),
    ]
    assert [row["train/loss"] for row in rows] == ["1.0", "2.0", "", "3.0", "4.0", ""]
    assert [row["val/loss"] for row in rows] == ["", "", "12.0", "", "", "14.0"]
    assert [row["step"] for row in history.rows] == [1, 2, 2, 3, 4, 4]


def test_accumulated_micro_batches_make_one_row_per_optimizer_step(tmp_path):
    history = History(tmp_path / "sft.csv")
    trainer([history], tmp_path, accumulate_grad_batches=2).fit(Supervised(), loader(4))
    assert [row["step"] for row in history.rows] == [1, 2]


def test_the_step_of_manual_optimisation_counts_rollouts(tmp_path):
    history = History(tmp_path / "ppo.csv")
    trainer([history], tmp_path).fit(Refinement([0.1, 0.2, 0.3], [1, 2, 3]), loader(3))
    assert [(row["step"], row["kind"], row["objective/kl"]) for row in history.rows] == [
        (1, "train", 1.0),
        (2, "train", 2.0),
        (3, "train", 3.0),
    ]
    assert "val/ratio" in history.rows[0]  # a training number, though its tag begins with val/


def test_rows_follow_the_logging_interval(tmp_path):
    history = History(tmp_path / "sft.csv", every_n_steps=2)
    trainer([history], tmp_path).fit(Supervised(), loader(5))
    assert [row["step"] for row in history.rows] == [2, 4]


def test_a_number_that_was_not_logged_again_is_an_empty_cell(tmp_path):
    class Sometimes(Supervised):
        def training_step(self, batch, batch_idx):
            if batch_idx % 2 == 0:
                self.log("monitor/gold", 0.5)
            return super().training_step(batch, batch_idx)

    history = History(tmp_path / "sft.csv")
    trainer([history], tmp_path).fit(Sometimes(), loader(4))
    assert [row["monitor/gold"] for row in rows_of(history.path)] == ["0.5", "", "0.5", ""]
    assert [row["train/perplexity"] for row in rows_of(history.path)] == ["7.0"] * 4  # equal, but logged


def test_a_sanity_check_is_not_a_validation(tmp_path):
    history = History(tmp_path / "sft.csv")
    trainer([history], tmp_path, num_sanity_val_steps=1).fit(Validated(), loader(1), loader(1))
    assert [row["kind"] for row in history.rows] == ["train", "validation"]


class SaveAtThird(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *given):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)


class Drawing(Validated):
    """Draws a random number in each validation, and logs one in each step."""

    def training_step(self, batch, batch_idx):
        self.log("train/drawn", torch.rand(()))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        torch.rand(3)
        super().validation_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_a_fit_validates_before_its_first_step_and_draws_the_same(tmp_path):
    drawn = {}
    for name, callbacks in (("without", []), ("first", [ValidateFirst()])):
        history = History(tmp_path / f"{name}.csv")
        torch.manual_seed(0)
        options = {"val_check_interval": 2, "max_epochs": 2}
        trainer([*callbacks, history, SaveAtThird(tmp_path / "at3.ckpt")], tmp_path, **options).fit(
            Drawing(), loader(4), loader(1)
        )
        drawn[name] = [row["train/drawn"] for row in history.rows if row["kind"] == "train"]
        validations = [row["step"] for row in history.rows if row["kind"] == "validation"]
        assert validations == [0] * len(callbacks) + [2, 4, 6, 8]
    assert drawn["first"] == drawn["without"] and len(set(drawn["first"])) == 8
    resumed = History(tmp_path / "first.csv")
    trainer([ValidateFirst(), resumed], tmp_path, **options).fit(
        Drawing(), loader(4), loader(1), ckpt_path=tmp_path / "at3.ckpt"
    )
    assert [row["step"] for row in resumed.rows if row["kind"] == "validation"] == [0, 2, 4, 6, 8]


def test_where_nothing_is_held_out_there_is_no_validation_before_the_first_step(tmp_path):
    history = History(tmp_path / "sft.csv")
    trainer([ValidateFirst(), history], tmp_path).fit(Supervised(), loader(1))
    trainer([ValidateFirst(), history], tmp_path, limit_val_batches=0).fit(Validated(), loader(1), loader(1))
    assert [row["kind"] for row in history.rows] == ["train"]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # a plain loader has no position
@pytest.mark.parametrize("rollouts", [4, 6])
def test_a_resumed_fit_keeps_earlier_rows_and_drops_those_beyond_the_checkpoint(tmp_path, rollouts):
    path = tmp_path / "ppo.csv"
    saver = SaveAt(3, tmp_path / "at3.ckpt")
    curves = [0.1 * i for i in range(6)], list(range(6))
    trainer([History(path), saver], tmp_path).fit(Refinement(*curves), loader(5))
    assert len(rows_of(path)) == 5
    resumed = History(path)
    trainer([resumed], tmp_path).fit(Refinement(*curves), loader(rollouts), ckpt_path=tmp_path / "at3.ckpt")
    assert [row["step"] for row in rows_of(path)] == [str(i + 1) for i in range(rollouts)]
    assert [row["objective/kl"] for row in resumed.rows] == [float(i) for i in range(rollouts)]


def test_a_new_fit_replaces_an_old_file(tmp_path):
    path = tmp_path / "sft.csv"
    path.write_text("step,kind\n9,train\n")
    trainer([History(path)], tmp_path).fit(Supervised(), loader(1))
    assert [row["step"] for row in rows_of(path)] == ["1"]


def test_the_row_of_a_validation_holds_no_training_numbers(tmp_path):
    history = History(tmp_path / "sft.csv", every_n_steps=2)  # the first step has no row of its own
    trainer([history], tmp_path, val_check_interval=1).fit(Validated(), loader(2), loader(1))
    assert [(row["step"], row["kind"], "train/loss" in row, "val/loss" in row) for row in history.rows] == [
        (1, "validation", False, True),
        (2, "train", True, False),
        (2, "validation", False, True),
    ]
