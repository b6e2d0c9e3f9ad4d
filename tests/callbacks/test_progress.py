import io

import pytest

from rlhf_lightning.callbacks import ProgressLine
from rlhf_lightning.callbacks.progress import PHASES, phases_text, progress_text
from tests.support.logging_modules import Refinement, Supervised, loader, trainer

PPO = {
    "objective/scores": 0.6123,
    "objective/kl": 4.216,
    "objective/kl_target": 6.0,
    "objective/kl_coef": 0.0512,
    "policy/clipfrac_avg": 0.081,
    "completions/mean_length": 18.44,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(stream):
    return stream.getvalue().splitlines()


def test_ppo_line_shows_reward_kl_against_target_and_speed_by_phase():
    text = progress_text(PPO, 12, 40, "gen 1.2s (850 tok/s) learn 2.2s")
    assert text == (
        "rollout 12/40  reward 0.612  kl 4.22/6  beta 0.0512  clip 8.1%  len 18.4  | gen 1.2s (850 tok/s) learn 2.2s"
    )


def test_a_kl_that_rounds_to_nothing_has_no_sign():
    assert "kl 0.00/6 " in progress_text(PPO | {"objective/kl": -0.001}, 12, 40, "")


def test_phases_are_shown_in_their_order_with_the_speed_of_sampling():
    seconds = {f"perf/seconds_{phase}": s for phase, s in zip(reversed(PHASES), (2.2, 0.44, 0.06, 1.2), strict=True)}
    assert phases_text(seconds) == "gen 1.2s score 0.1s eval 0.4s learn 2.2s"
    speed = {"perf/tokens_per_second_generate": 12345.0}
    assert phases_text(seconds | speed) == "gen 1.2s (12.3k tok/s) score 0.1s eval 0.4s learn 2.2s"


@pytest.mark.parametrize("target", [None, 0.0, float("nan")])
def test_a_missing_target_is_not_shown(target):
    metrics = {"objective/scores": 0.0, "objective/kl": 1.0} | (
        {} if target is None else {"objective/kl_target": target}
    )
    assert progress_text(metrics, 1, None, "") == "rollout 1  reward 0.000  kl 1.00"


def test_reward_line_shows_accuracy_and_margin():
    metrics = {"train/loss": 0.5, "train/accuracy": 0.75, "train/margin": 1.5, "val/accuracy": 0.7}
    assert progress_text(metrics, 3, 9, "") == "step 3/9  loss 0.500  acc 0.750  margin 1.50  val acc 0.700"


def test_preference_line_shows_how_far_the_answers_are_apart():
    metrics = {"train/loss": 0.5, "train/rewards/accuracies": 0.75, "train/rewards/margins": 1.5, "val/loss": 0.6}
    assert progress_text(metrics, 3, 9, "") == "step 3/9  loss 0.500  acc 0.750  margin 1.50  val loss 0.600"


def test_a_log_file_gets_a_line_each_quarter_and_a_summary(tmp_path):
    stream = io.StringIO()
    line = ProgressLine(every_percent=25, every_seconds=1e9, stream=stream)
    trainer([line], tmp_path, enable_progress_bar=True).fit(Supervised(), loader(8))
    *shown, summary = lines(stream)
    assert shown == [f"step {i}/8  loss {i}.000  ppl 7.00" for i in (2, 4, 6)]
    assert summary.startswith("step 8  loss 8.000  ppl 7.00  | done in ")


def test_a_slow_fit_is_never_silent_for_longer_than_the_limit(tmp_path):
    stream = io.StringIO()
    line = ProgressLine(every_percent=200, every_seconds=0, stream=stream)
    trainer([line], tmp_path, enable_progress_bar=True).fit(Supervised(), loader(4))
    assert len(lines(stream)) == 4


def test_a_fit_with_timed_phases_shows_their_seconds(tmp_path):
    stream = io.StringIO()
    line = ProgressLine(every_percent=50, stream=stream)
    trainer([line], tmp_path, enable_progress_bar=True).fit(Refinement([0.5] * 2, [1] * 2), loader(2))
    assert lines(stream)[0] == "rollout 1/2  reward 0.500  kl 1.00/4  beta 0.1  clip 12.5%  len 4.0  | learn 0.5s"


def test_on_a_terminal_the_line_lives_in_place_and_the_summary_stays(tmp_path):
    stream = Terminal()
    trainer([ProgressLine(stream=stream)], tmp_path, enable_progress_bar=True).fit(Supervised(), loader(3))
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back
    assert "step 3  loss 3.000" in lines(stream)[-1]


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
