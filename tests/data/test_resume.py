"""Stop a real `Trainer` anywhere, resume it from its checkpoint, and see the rows of an uninterrupted run."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.data import DemonstrationData, PromptData, ShardedLoader
from rlhf_lightning.data.prompts import PromptLoader
from rlhf_lightning.errors import ConfigError, DataError

ROWS = [{"prompt": chr(97 + i)} for i in range(10)]


class Recorder(LightningModule):
    """Writes down the prompts of each batch."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append("".join(row["prompt"] for row in batch.rows))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAt(Callback):
    """Save after some micro-batches and end the run there, as a signal would."""

    def __init__(self, batches, path):
        self.left = batches
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


class SaveEpoch(Callback):
    """Save where `ModelCheckpoint` does."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.path)


def make_data(tokenizer, path, loader=PromptLoader, **options):
    options = {"batch_size": 4, "micro_batch_size": 2, "validation_fraction": 0.0, "seed": 3} | options
    micro_batch_size = options.pop("micro_batch_size")
    data = PromptData(path, None, tokenizer, **options)
    data.micro_batch_size = micro_batch_size  # the other data modules take it as an argument
    data.loader = loader
    return data


def fit(data, tmp_path, *, ckpt_path=None, callbacks=(), **options):
    module = Recorder()
    trainer = Trainer(
        **{"max_epochs": 3} | options,
        accelerator="cpu",
        accumulate_grad_batches=2,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    try:
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        assert ckpt_path is None
    return module.seen


# 4 micro-batches an epoch: in the middle of epoch 0, at its end, in epochs 1 and 2; in and between optimizer steps. 6
# with the batch of the 2 rows that are left.
@pytest.mark.parametrize(("loader", "size"), [(PromptLoader, 4), (ShardedLoader, 6)])
@pytest.mark.parametrize("stop", [1, 2, 4, 5, 6, 7, 8, 10])
def test_a_run_stopped_after_any_micro_batch_sees_the_same_rows_when_resumed(
    tokenizer, write, tmp_path, stop, loader, size
):
    path = write(ROWS)
    whole = fit(make_data(tokenizer, path, loader), tmp_path)
    epochs = {"".join(sorted("".join(whole[i : i + size]))) for i in range(0, 3 * size, size)}
    assert len(whole) == 3 * size and (len(epochs) > 1 if size == 4 else epochs == {"abcdefghij"})
    ckpt = tmp_path / "stop.ckpt"
    before = fit(make_data(tokenizer, path, loader), tmp_path, callbacks=[StopAt(stop, ckpt)])
    assert before == whole[:stop]
    assert before + fit(make_data(tokenizer, path, loader), tmp_path, ckpt_path=ckpt) == whole


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_saved_at_the_end_of_an_epoch_goes_on_with_the_next_permutation(tokenizer, write, tmp_path, epochs):
    path = write(ROWS)
    whole = fit(make_data(tokenizer, path), tmp_path)
    ckpt = tmp_path / "epoch.ckpt"
    before = fit(make_data(tokenizer, path), tmp_path, max_epochs=epochs, callbacks=[SaveEpoch(ckpt)])
    assert before + fit(make_data(tokenizer, path), tmp_path, ckpt_path=ckpt) == whole


def test_a_limit_on_batches_still_reaches_all_rows_and_resumes(tokenizer, write, tmp_path):
    path = write(ROWS)
    limits = {"limit_train_batches": 3, "max_epochs": 5}
    whole = fit(make_data(tokenizer, path), tmp_path, **limits)
    stream = PromptLoader(items_of(tokenizer, path), collate_prompts, batch_size=4, micro_batch_size=2, seed=3)
    assert whole == [batch for _ in range(4) for batch in stream][:15]
    ckpt = tmp_path / "stop.ckpt"
    before = fit(make_data(tokenizer, path), tmp_path, callbacks=[StopAt(7, ckpt)], **limits)
    assert before + fit(make_data(tokenizer, path), tmp_path, ckpt_path=ckpt, **limits) == whole


def items_of(tokenizer, path):
    data = make_data(tokenizer, path)
    data.setup("fit")
    return data.train_items


def collate_prompts(items, denominator):
    return "".join(item.row["prompt"] for item in items)


def test_overfitting_repeats_the_same_rows(tokenizer, write, tmp_path):
    seen = fit(make_data(tokenizer, write(ROWS)), tmp_path, overfit_batches=2)
    assert seen == ["ab", "cd"] * 3


def test_validation_runs_on_all_held_out_rows_each_time(tokenizer, write, tmp_path):
    data = make_data(tokenizer, write(ROWS), validation_fraction=0.3)
    sizes = []

    class Count(Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
            sizes.append(len(batch))

    fit(data, tmp_path, callbacks=[Count()], max_epochs=2, num_sanity_val_steps=1)
    assert sizes == [2] + [2, 1] * 2


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (
            ROWS[::-1],
            {},
            DataError,
            r"rows.jsonl: the training rows are not those of the checkpoint .*restore the file",
        ),
        (ROWS, {"seed": 4}, ConfigError, "seed 3 -> 4"),
        (ROWS, {"micro_batch_size": 4}, ConfigError, "micro_batches_per_step 2 -> 1"),
        (ROWS, {"batch_size": 2}, ConfigError, "batch_size 4 -> 2"),
    ],
)
def test_resuming_on_other_rows_or_sizes_is_refused(tokenizer, write, tmp_path, rows, options, error, message):
    ckpt = tmp_path / "stop.ckpt"
    fit(make_data(tokenizer, write(ROWS)), tmp_path, callbacks=[StopAt(2, ckpt)])
    with pytest.raises(error, match=message):
        fit(make_data(tokenizer, write(rows), **options), tmp_path, ckpt_path=ckpt)


def test_a_checkpoint_that_cut_in_the_order_of_the_rows_or_left_rows_out_is_not_resumed_otherwise(tokenizer, write):
    def data(window, rows=4):
        rows = [{"prompt": chr(97 + i), "completion": "b"} for i in range(rows)]
        options = {"batch_size": 4, "validation_fraction": 0.0, "length_window": window}
        made = DemonstrationData(write(rows), None, tokenizer, **options)
        made.setup("fit")
        made.train_dataloader()
        return made

    old = data(0).state_dict()
    del old["length_window"]  # as older versions wrote it
    data(0).load_state_dict(old)
    with pytest.raises(ConfigError, match="length_window 0 -> 1"):
        data(1).load_state_dict(old)
    del old["rows_per_epoch"]
    data(0).load_state_dict(old)
    old = data(0, 5).state_dict()
    del old["rows_per_epoch"]
    with pytest.raises(ConfigError, match="rows_per_epoch 4 -> 5"):
        data(0, 5).load_state_dict(old)


def test_the_same_rows_at_another_path_resume(tokenizer, write):
    rows = [{"text": f"row {i}"} for i in range(6)]
    states = []
    for name in ("rows.jsonl", "moved.jsonl"):
        data = DemonstrationData(write(rows, name), None, tokenizer, batch_size=2, validation_fraction=0.0)
        data.setup("fit")
        data.train_dataloader()
        states.append(data.state_dict())
    assert states[0] == states[1] and states[0]["data"]
