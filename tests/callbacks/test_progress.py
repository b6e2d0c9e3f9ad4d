import io
import re

import lightning.pytorch as pl
import pytest

from rlhf_lightning.callbacks import ProgressLine
from rlhf_lightning.callbacks.progress import PHASES, phase_parts, shown_parts
from rlhf_lightning.modules import DPOModule, PPOModule, RewardModule
from tests.support.logging_modules import Refinement, Supervised, loader, trainer

PPO = {
    "objective/scores": 0.6123,
    "objective/kl": 4.216,
    "objective/kl_target": 6.0,
    "objective/kl_coef": 0.0512,
    "policy/clipfrac_avg": 0.081,
    "completions/mean_length": 18.44,
}


class Stop(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = batch_idx == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(stream):
    """What was printed, with t for every time."""
    return re.sub(r"\b\d+:\d\d\b", "t", stream.getvalue()).splitlines()


def test_ppo_line_shows_reward_kl_against_target_and_what_the_judge_says():
    shown = shown_parts(PPOModule, PPO | {"monitor/gold": 1.3})
    assert shown == ["reward 0.612", "kl 4.22/6", "beta 0.0512", "len 18.4", "clip 8.1%", "gold 1.30"]


def test_a_kl_that_rounds_to_nothing_has_no_sign():
    assert "kl 0.00/6" in shown_parts(PPOModule, PPO | {"objective/kl": -0.001})


def test_phases_are_shown_the_longest_first_with_the_speed_of_sampling():
    seconds = {f"perf/seconds_{phase}": s for phase, s in zip(reversed(PHASES), (2.2, 0.44, 0.06, 1.2), strict=True)}
    assert phase_parts(seconds) == ["| learn 2.2s", "gen 1.2s", "eval 0.4s", "score 0.1s"]
    speed = {"perf/tokens_per_second_generate": 12345.0}
    assert phase_parts(seconds | speed)[1] == "gen 1.2s (12.3k tok/s)"


@pytest.mark.parametrize("target", [None, 0.0, float("nan")])
def test_a_missing_target_is_not_shown(target):
    metrics = {"objective/scores": 0.0, "objective/kl": 1.0} | (
        {} if target is None else {"objective/kl_target": target}
    )
    assert shown_parts(PPOModule, metrics) == ["reward 0.000", "kl 1.00"]


def test_reward_and_preference_lines_show_accuracy_and_margin():
    metrics = {"train/loss": 0.5, "train/accuracy": 0.75, "train/margin": 1.5, "val/accuracy": 0.7}
    assert shown_parts(RewardModule, metrics) == ["loss 0.500", "acc 0.750", "margin 1.50", "val acc 0.700"]
    metrics = {"train/loss": 0.5, "train/rewards/accuracies": 0.75, "train/rewards/margins": 1.5, "val/loss": 0.6}
    assert shown_parts(DPOModule, metrics) == ["loss 0.500", "acc 0.750", "margin 1.50", "val loss 0.600"]


def test_a_subclass_says_what_its_line_shows():
    class Counting(PPOModule):
        shown = (("words", "train/words", ".0f"), *PPOModule.shown)

    assert shown_parts(Counting, PPO | {"train/words": 3.0})[:2] == ["words 3", "reward 0.612"]


def test_a_narrow_terminal_shows_whole_parts_and_what_matters_most(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    line = ProgressLine(stream=stream)
    line.title = "[4/5] ppo"
    trainer([line], tmp_path, enable_progress_bar=True).fit(Refinement([0.5] * 4, [1] * 4), loader(4))
    drawn = [
        part
        for part in re.split(r"[\r\n]|\x1b\[[0-9?;]*[a-zA-Z]", stream.getvalue())
        if re.search(r"rollout \d/4", part)
    ]
    assert drawn and all(
        len(part.rstrip()) <= 80 and "reward 0.500  kl 1.00/4" in part and not part.rstrip().endswith("\u2026")
        for part in drawn
    )
    monkeypatch.setenv("COLUMNS", "40")
    narrow = Terminal()
    trainer([ProgressLine(stream=narrow)], tmp_path, enable_progress_bar=True).fit(Refinement([0.5], [1]), loader(1))
    summary = narrow.getvalue().rpartition("rollout in")[2].splitlines()
    assert len(summary) > 1 and max(map(len, summary)) <= 40
    assert [word for line in summary for word in line.split()][1:3] == ["reward", "0.500"]


def test_a_log_file_gets_a_line_each_quarter_and_a_summary(tmp_path):
    stream = io.StringIO()
    line = ProgressLine(every_percent=25, every_seconds=1e9, stream=stream)
    trainer([line], tmp_path, enable_progress_bar=True).fit(Supervised(), loader(8))
    *shown, summary = lines(stream)
    assert shown == [f"step {i}/8  t, t left  loss {i}.000  ppl 7.00" for i in (2, 4, 6)]
    assert summary == "8 steps in t  loss 1.000 -> 8.000  ppl 7.00"


@pytest.mark.filterwarnings("ignore:predict returned None")
def test_sampling_says_how_many_answers_there_are(tmp_path):
    class Sampling(Supervised):
        def predict_step(self, batch, batch_idx):
            self.records = [*getattr(self, "records", ()), "an answer"]

    stream = io.StringIO()
    line = ProgressLine(every_percent=50, stream=stream)
    line.title = "[2/5] rank"
    trainer([line], tmp_path, enable_progress_bar=True).predict(Sampling(), loader(4))
    assert lines(stream) == [
        "[2/5] rank  batch 2/4  t, t left  2 answers", "[2/5] rank  4 answers in t"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "limits", "why"),
    [
        ([], {"max_time": {"milliseconds": 1}}, "trainer.max_time is over"),
        ([], {"max_steps": 3}, "trainer.max_steps=3"),
        ([Stop()], {}, "a callback or trainer.should_stop ended it"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*max_steps")
def test_a_fit_that_ends_early_says_why_and_what_was_planned(tmp_path, more, limits, why):
    stream = io.StringIO()
    line = ProgressLine(stream=stream)
    trainer([line, *more], tmp_path, enable_progress_bar=True, **limits).fit(Refinement([0.5] * 8, [1] * 8), loader(8))
    assert f"ended early, 8 were planned: {why}" in lines(stream)[-1]


def test_a_slow_fit_is_never_silent_for_longer_than_the_limit(tmp_path):
    stream = io.StringIO()
    line = ProgressLine(every_percent=200, every_seconds=0, stream=stream)
    trainer([line], tmp_path, enable_progress_bar=True).fit(Supervised(), loader(4))
    assert len(lines(stream)) == 4


def test_a_fit_with_timed_phases_shows_their_seconds(tmp_path):
    stream = io.StringIO()
    line = ProgressLine(every_percent=50, stream=stream)
    trainer([line], tmp_path, enable_progress_bar=True).fit(Refinement([0.5] * 2, [1] * 2), loader(2))
    assert lines(stream)[0] == (
        "rollout 1/2  t, t left  reward 0.500  kl 1.00/4  beta 0.1  len 4.0  clip 12.5%  | learn 0.5s"
    )


def test_on_a_terminal_the_line_lives_in_place_and_the_summary_stays(tmp_path):
    stream = Terminal()
    trainer([ProgressLine(stream=stream)], tmp_path, enable_progress_bar=True).fit(Supervised(), loader(3))
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back
    assert "3 steps in t  loss 1.000 -> 3.000" in lines(stream)[-1]


def test_the_terminal_is_given_back_when_training_fails(tmp_path):
    class Failing(Supervised):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise ArithmeticError("broken")
            return super().training_step(batch, batch_idx)

    stream = Terminal()
    with pytest.raises(ArithmeticError):
        trainer([ProgressLine(stream=stream)], tmp_path, enable_progress_bar=True).fit(Failing(), loader(4))
    assert "\x1b[?25h" in stream.getvalue()
    assert lines(stream)[-1].endswith("| stopped at 2")


def test_a_disabled_line_prints_nothing(tmp_path):
    stream = io.StringIO()
    line = ProgressLine(stream=stream)
    line.disable()
    trainer([line], tmp_path, enable_progress_bar=True).fit(Supervised(), loader(2))
    assert stream.getvalue() == ""
