import re
import threading
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from rlhf_lightning.callbacks import TensorBoardExtras
from rlhf_lightning.callbacks.tensorboard import CHARTS, chart_layout, distributions
from rlhf_lightning.errors import ConfigError
from tests.support.logging_modules import Refinement, SaveAt, Supervised, experience, loader, trainer


def events(tmp_path, module, batches, **options):
    logger = TensorBoardLogger(tmp_path, name="", version="ppo")
    trainer([TensorBoardExtras(**options)], tmp_path, logger=logger).fit(module, loader(batches))
    accumulator = EventAccumulator(str(tmp_path / "ppo"), size_guidance={"histograms": 0, "tensors": 0})
    return accumulator.Reload()


def layout_of(accumulator):
    content = accumulator.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    return layout_pb2.Layout.FromString(content)


def test_histograms_are_written_every_second_rollout_on_the_axis_of_the_scalars(tmp_path):
    read = events(tmp_path, Refinement([0.5] * 5, [1] * 5), 5, every_n_rollouts=2)
    assert [event.step for event in read.Scalars("objective/kl")] == [0, 1, 2, 3, 4]
    assert [event.step for event in read.Histograms("responses/score")] == [0, 2, 4]
    scores = read.Histograms("responses/score")[0].histogram_value
    assert (scores.min, scores.max, scores.num) == (-1.0, 2.0, 3)


def test_the_layout_draws_kl_against_its_target(tmp_path):
    layout = layout_of(events(tmp_path, Refinement([0.5], [1]), 1))
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["KL against its target (nats per response)"] == ["^objective/kl$", "^objective/kl_target$"]
    assert {category.title.split(":")[0] for category in layout.category} == {"PPO"}


def test_a_module_that_logs_late_still_gets_its_layout(tmp_path):
    layout = layout_of(events(tmp_path, Supervised(), 3))
    assert [category.title for category in layout.category] == ["Supervised"]


def test_each_chart_shows_its_curves_and_no_others():
    told = re.findall(r"`([a-z_]+/[\w/]+)`", Path("docs/metrics.md").read_text())
    logged = {*told, "monitor/gold", "val/ratio_var", "objective/kl_p99", "objective/kl_coef", "train/loss_total"}
    for category, charts in CHARTS.items():
        drawn = chart_layout([*logged, *_marks()])[category]
        for title, tags in charts.items():
            patterns = [re.compile(pattern) for pattern in drawn[title][1]]  # as TensorBoard applies them
            seen = {tag for tag in logged if any(pattern.match(tag) for pattern in patterns)}
            assert len(patterns) == len(tags)
            assert seen == {tag if tag != "monitor/" else "monitor/gold" for tag in tags}, (category, title)


def _marks():
    return ["objective/scores", "train/perplexity", "train/accuracy"]


def test_the_layout_names_the_stage_that_logs():
    assert list(chart_layout(["train/accuracy", "train/loss"])) == ["Reward model"]
    assert chart_layout(["something/else"]) == {}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # a plain loader has no position
def test_a_fit_that_goes_on_takes_back_the_steps_it_does_again(tmp_path):
    saver = SaveAt(3, tmp_path / "at3.ckpt")
    for resume in (None, str(saver.path)):
        logger = TensorBoardLogger(tmp_path, name="", version="ppo")
        fitted = trainer([TensorBoardExtras(), saver], tmp_path, logger=logger)
        fitted.fit(Refinement([0.5] * 5, [1] * 5), loader(5), ckpt_path=resume)
    read = EventAccumulator(str(tmp_path / "ppo"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in read.Scalars("objective/kl")] == [0, 1, 2, 3, 4]


class Monitor(pl.Callback):
    """Logs a monitor after every second rollout."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.rollouts % 2 == 0:
            pl_module.log("monitor/gold", 10.0 * pl_module.rollouts)


class DiesAfter(pl.Callback):
    """Ends the fit after a rollout."""

    def __init__(self, rollout):
        self.rollout = rollout

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.rollouts == self.rollout:
            raise KeyError


def curve(folder, count, tag):
    read = EventAccumulator(str(folder / f"by_{count}"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in read.Scalars(f"by_{count}/{tag}")]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_curves_over_episodes_and_tokens_lose_no_point_of_a_run_that_was_killed_and_double_none(tmp_path):
    saver = SaveAt(3, tmp_path / "at3.ckpt")
    threads = threading.active_count()
    for checkpoint, dies_after in ((None, 5), (str(saver.path), None)):
        logger = TensorBoardLogger(tmp_path, name="", version="ppo")
        fitted = trainer([Monitor(), TensorBoardExtras(), saver, DiesAfter(dies_after)], tmp_path, logger=logger)
        with nullcontext() if checkpoint else pytest.raises(KeyError):
            fitted.fit(Refinement([0.5, 1, 2, 3, 4, 5], [1] * 6), loader(6), ckpt_path=checkpoint)
        assert threading.active_count() == threads
    scores = [0.5, 1, 2, 3, 4, 5]
    assert curve(tmp_path / "ppo", "episodes", "objective/scores") == list(zip(range(3, 19, 3), scores, strict=True))
    tokens = [4 * rollout**2 for rollout in range(1, 7)]
    assert curve(tmp_path / "ppo", "tokens", "objective/scores") == list(zip(tokens, scores, strict=True))
    assert curve(tmp_path / "ppo", "tokens", "monitor/gold") == [(16, 20), (64, 40), (144, 60)]
    read = EventAccumulator(str(tmp_path / "ppo" / "by_tokens")).Reload()
    drawn = {"objective/scores", "objective/kl", "completions/mean_length", "monitor/gold"}
    assert set(read.Tags()["scalars"]) == {f"by_tokens/{tag}" for tag in drawn}


def test_a_rollout_that_was_given_up_is_no_point_and_no_count_is_no_folder(tmp_path):
    module = Refinement([0.5, 1, 2], [1] * 3)
    module.gave_up = True
    events(tmp_path, module, 3, axes=["episodes"])
    read = EventAccumulator(str(tmp_path / "ppo" / "by_episodes")).Reload()
    assert read.Tags()["scalars"] == [] and not (tmp_path / "ppo" / "by_tokens").exists()
    events(tmp_path / "sft", Supervised(), 1)
    assert not list((tmp_path / "sft").rglob("by_*"))


def test_a_folder_that_cannot_be_made_costs_its_curves_and_nothing_else(tmp_path, caplog):
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "by_tokens").write_text("in the way")
    read = events(tmp_path, Refinement([0.5], [1]), 1)
    assert [event.value for event in read.Scalars("objective/scores")] == [0.5]
    assert curve(tmp_path / "ppo", "episodes", "objective/scores") == [(3, 0.5)]
    assert "by_tokens: no more is written for TensorBoard (File exists)" in caplog.text


def test_other_loggers_are_left_alone(tmp_path):
    logger = CSVLogger(tmp_path)
    trainer([TensorBoardExtras()], tmp_path, logger=logger).fit(Refinement([0.5], [1]), loader(1))


def test_distributions_hold_only_what_counts():
    found = distributions(experience())
    torch.testing.assert_close(found["responses/kl_nats"], torch.tensor([0.75, 0.0, 1.0]))
    assert found["responses/length_tokens"].tolist() == [2, 1, 1]
    torch.testing.assert_close(found["tokens/log_ratio_policy_to_reference"], torch.tensor([0.5, 0.25, 0.0, 1.0]))
    assert found["tokens/advantage"].tolist() == [3.0] * 4


def test_arguments_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="every_n_rollouts=0"):
        TensorBoardExtras(every_n_rollouts=0)
    with pytest.raises(ConfigError, match=r"^axes=\['rows'\]: choose from \['episodes', 'tokens'\]"):
        TensorBoardExtras(axes=["rows"])
    with pytest.raises(ConfigError, match=r"^axes=\[\['tokens'\]\]: choose from"):
        TensorBoardExtras(axes=[["tokens"]])  # no name, and nothing that a set takes
