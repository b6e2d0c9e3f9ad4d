"""What a callback may read when a batch ends: the numbers of this very step."""

from functools import partial

import lightning
import pytest
import torch

from rlhf_lightning.callbacks import History
from rlhf_lightning.callbacks.steps import NewNumbers, steps_done
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.modules import SFTModule
from tests.support import phases, tiny
from tests.support.logging_modules import Supervised, loader, trainer


class Noting(SFTModule):
    """Notes the sums of each micro-batch, for means by hand."""

    def loss(self, batch):
        nll, sums = super().loss(batch)
        self.noted.append((nll.item(), int(sums["num_tokens"])))
        return nll, sums


class Reader(lightning.Callback):
    """What stands in ``callback_metrics`` when each batch ends."""

    def __init__(self, *tags):
        self.tags, self.seen = tags, []

    def on_train_batch_end(self, trainer, module, *given):
        metrics = trainer.callback_metrics
        self.seen.append((steps_done(trainer), *(float(metrics[tag]) for tag in self.tags if tag in metrics)))


def test_a_callback_reads_the_means_of_all_micro_batches_of_the_step_that_ends(tmp_path):
    phases.write(tmp_path)
    data = DemonstrationData(
        tmp_path / "demonstrations.jsonl", None, tiny.tokenizer(), batch_size=4, micro_batch_size=2,
        validation_fraction=0.0,
    )  # fmt: skip
    module = Noting(tiny.policy(), tiny.tokenizer(), partial(torch.optim.SGD, lr=0.1))
    module.noted = []
    reader = Reader("train/loss")
    trainer([reader], tmp_path, accumulate_grad_batches=2).fit(module, datamodule=data)
    by_hand = [
        (first[0] + second[0]) / (first[1] + second[1])
        for first, second in zip(module.noted[::2], module.noted[1::2], strict=True)
    ]
    # the first micro-batch of a step ends with what the step before has logged, or with nothing
    assert reader.seen == [
        (0,),
        (1, pytest.approx(by_hand[0])),
        (1, pytest.approx(by_hand[0])),
        (2, pytest.approx(by_hand[1])),
    ]


def test_the_learning_rate_of_a_step_is_the_one_it_was_taken_with(tmp_path):
    reader = Reader("train/learning_rate")
    phases.sft(phases.write(tmp_path), callbacks=[reader])  # four steps, a line from 0.1 to 0
    assert reader.seen[1::2] == [(step, pytest.approx(0.1 * (1 - (step - 1) / 4), abs=1e-7)) for step in (1, 2, 3, 4)]


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
def test_a_callback_reads_the_rollout_that_was_just_learned_from(tmp_path):
    class Scores(Reader):
        def on_train_batch_end(self, trainer, module, *given):
            super().on_train_batch_end(trainer, module, *given)
            self.seen[-1] += (float(module.last_experience.scores.mean()), module.rollouts, trainer.global_step)

    reader = Scores("objective/scores")
    phases.ppo(phases.write(tmp_path), callbacks=[reader])
    assert [(step, rollouts, updates) for step, _, _, rollouts, updates in reader.seen] == [(1, 1, 4), (2, 2, 8)]
    assert all(logged == pytest.approx(mean) for _, logged, mean, _, _ in reader.seen)


def test_what_a_callback_logs_is_in_the_row_of_its_step_where_the_history_comes_after_it(tmp_path):
    class Monitor(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *given):
            module.log("monitor/step", float(trainer.global_step))

    history = History(tmp_path / "sft.csv")
    trainer([Monitor(), history], tmp_path).fit(Supervised(), loader(3))
    assert [row["monitor/step"] for row in history.rows] == [1.0, 2.0, 3.0]


def test_equal_numbers_are_new_where_they_were_logged_again(tmp_path):
    class Look(lightning.Callback):
        new, seen = NewNumbers(), []

        def on_train_batch_end(self, trainer, *given):
            self.seen.append((self.new.look(trainer), self.new.look(trainer)))

    look = Look()
    trainer([look], tmp_path).fit(Supervised(), loader(2))
    assert look.seen == [({"train/loss": step, "train/perplexity": 7.0}, {}) for step in (1.0, 2.0)]
