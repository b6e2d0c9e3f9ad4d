import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_lightning.callbacks import BestPolicy, RewardHackingGuard, ScoreMonitor
from rlhf_lightning.config.compose import compose, safe_instantiate
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.evaluation.hacking import Limits
from rlhf_lightning.optim.kl_controllers import FixedKL
from rlhf_lightning.training.ranks import Ranks
from tests.modules.test_ppo import TEXTS, module
from tests.support import tiny
from tests.support.logging_modules import Refinement, SaveAt, Supervised, loader, trainer

ALARM = "ignore:reward hacking"
GOLD = Limits(window=1, noise=0.0, max_kl=50.0)


class Curve:
    """A scorer that says the next number of a list about every response."""

    name = "gold"

    def __init__(self, means):
        self.means = list(means)

    def to(self, device):
        return self

    def score(self, rollout, tokenizer):
        return torch.full((len(rollout),), float(self.means.pop(0)))


class Hacked(Refinement):
    """The score rises; KL is what it is given."""

    def __init__(self, rollouts, kl=1.0, target=None):
        super().__init__([float(i) for i in range(rollouts)], [kl] * rollouts, target)

    ranks = Ranks()


def causes(guard):
    return [(alarm.rollout, alarm.cause) for alarm in guard.alarms]


def test_an_alarm_warns_once_and_lets_training_go_on(tmp_path):
    guard, run = RewardHackingGuard(Limits(window=1, max_kl=0.5)), Hacked(3)
    with pytest.warns(UserWarning, match="reward hacking. rollout 1, kl: .*1 nats per response") as caught:
        fitted = trainer([guard], tmp_path)
        fitted.fit(run, loader(3))
    assert sum("reward hacking" in str(w.message) for w in caught) == 1
    assert run.rollouts == 3 and causes(guard) == [(1, "kl")]
    assert float(fitted.callback_metrics["guard/alarm"]) == 1.0


@pytest.mark.filterwarnings(ALARM)
def test_stop_ends_the_fit_after_the_rollout_with_the_alarm_and_the_best_policy_is_restored(tmp_path):
    guard, best = (
        RewardHackingGuard(GOLD, "stop", gold=Curve([0.0, 1.0, 2.0, 1.0, 0.0])),
        BestPolicy(monitor="guard/gold", window=1),
    )
    run = Hacked(5)
    trainer([guard, best], tmp_path).fit(run, loader(5))
    assert run.rollouts == 4 and causes(guard) == [(4, "gold")]
    assert run.policy.weight.item() == 3.0


@pytest.mark.filterwarnings(ALARM)
def test_gold_is_asked_at_first_and_then_every_second_rollout(tmp_path):
    asked = Curve([0.0, 1.0, 0.5])
    guard = RewardHackingGuard(GOLD, gold=asked, every_n_rollouts=2)
    trainer([guard], tmp_path).fit(Hacked(5), loader(5))
    assert asked.means == [] and causes(guard) == [(4, "gold")]


@pytest.mark.filterwarnings(ALARM)
@pytest.mark.parametrize(("first", "at"), [("monitor", 4), ("guard", 5)])
def test_the_number_of_a_monitor_is_gold_a_rollout_later_if_the_guard_comes_first(tmp_path, first, at):
    guard, monitor = RewardHackingGuard(GOLD), ScoreMonitor(Curve([0.0, 1.0, 2.0, 1.0, 0.0]))
    callbacks = [monitor, guard] if first == "monitor" else [guard, monitor]
    trainer(callbacks, tmp_path).fit(Hacked(5), loader(5))
    assert causes(guard) == [(at, "gold")]


@pytest.mark.filterwarnings(ALARM)
def test_a_number_that_was_not_logged_again_is_not_counted_again(tmp_path):
    seen = []
    guard, monitor = RewardHackingGuard(GOLD), ScoreMonitor(Curve([0.0, 1.0, 1.0]), every_n_rollouts=2)
    observe = guard.detector.observe
    guard.detector.observe = lambda rollout, metrics, gold, std: (
        seen.append(gold) or observe(rollout, metrics, gold, std)
    )
    trainer([monitor, guard], tmp_path).fit(Hacked(6), loader(6))
    assert seen == [None, 0.0, None, 1.0, None, 1.0]


@pytest.mark.filterwarnings(ALARM)
@pytest.mark.parametrize(("tag", "expected"), [("mine/gold", []), (None, [(2, "gold")])])
def test_the_tag_of_gold_can_be_chosen(tmp_path, tag, expected):
    class TwoMonitors(Hacked):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.log_dict({"monitor/a": -float(self.rollouts), "mine/gold": float(self.rollouts)})

    guard = RewardHackingGuard(GOLD, gold_tag=tag)
    trainer([guard], tmp_path).fit(TwoMonitors(3), loader(3))
    assert causes(guard) == expected


@pytest.mark.filterwarnings(ALARM)
def test_tensorboard_gets_the_reason_and_the_count(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="ppo")
    guard = RewardHackingGuard(GOLD, gold=Curve([0.0, 2.0, 1.0]))
    trainer([guard], tmp_path, logger=logger).fit(Hacked(3), loader(3))
    read = EventAccumulator(str(tmp_path / "ppo"), size_guidance={"tensors": 0}).Reload()
    assert [event.value for event in read.Scalars("guard/alarm")] == [0.0, 0.0, 1.0]
    assert [event.value for event in read.Scalars("guard/gold")] == [0.0, 2.0, 1.0]
    assert read.Scalars("guard/gold_drop")[-1].value == pytest.approx(0.5)
    (text,) = read.Tensors("guard/alarms/text_summary")
    assert text.step == 2 and b"| gold | gold has lost 50%" in text.tensor_proto.string_val[0]


def test_a_stage_that_scores_nothing_is_left_alone(tmp_path):
    fitted = trainer([RewardHackingGuard(Limits(window=1, max_kl=0.1))], tmp_path)
    fitted.fit(Supervised(), loader(2))
    assert "guard/alarm" not in fitted.callback_metrics


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # a plain loader has no position
@pytest.mark.filterwarnings(ALARM)
def test_a_resumed_guard_remembers_the_peak_and_does_not_repeat_itself(tmp_path):
    def guard(means):
        return RewardHackingGuard(Limits(window=1, noise=0.0, max_kl=0.5), gold=Curve(means))

    saver = SaveAt(2, tmp_path / "at2.ckpt")
    trainer([guard([0.0, 2.0, 0.0, 0.0]), saver], tmp_path).fit(Hacked(4), loader(4))
    resumed = guard([1.9, 1.5])
    trainer([resumed], tmp_path).fit(Hacked(4), loader(4), ckpt_path=tmp_path / "at2.ckpt")
    assert causes(resumed) == [(1, "kl"), (3, "gold")]


class Recorded(Curve):
    """Keeps what it was asked about."""

    def __init__(self):
        self.asked = []

    def score(self, rollout, tokenizer):
        self.asked.append(rollout)
        return torch.where(torch.arange(len(rollout)) > 0, 1.0, math.nan)


def test_held_out_answers_come_from_the_policy_and_leave_the_samples_of_training_alone(tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("we left happy .", "good", "the food")))
    gold = Recorded()
    guard = RewardHackingGuard(gold=gold, held_out=str(held_out), max_rows=2, samples_per_prompt=3)
    seen = []
    for callbacks in ([], [guard]):
        ppo = module()
        batch = tiny.prompts(*TEXTS, repeats=2)
        fitted = trainer(callbacks, tmp_path)
        fitted.fit(ppo, tiny.Prompts(batch, 3))
        seen.append(ppo.last_experience.rollout.response_ids)
    assert torch.equal(*seen)
    assert [row["prompt"] for row in gold.asked[0].rows] == ["we left happy ."] * 3 + ["good"] * 3
    first, second, third = (r.response_ids for r in gold.asked)
    assert not torch.equal(first, second) and not torch.equal(second, third)  # fresh random numbers
    assert float(fitted.callback_metrics["guard/gold"]) == 1.0  # the NaN is left out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"action": "panic"}, "choose warn or stop"),
        ({"every_n_rollouts": 0}, "every_n_rollouts=0"),
        ({"held_out": "prompts.jsonl"}, r"\+judge@callbacks.guard.gold"),
    ],
)
def test_what_cannot_guard_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        RewardHackingGuard(**wrong)


def test_a_learned_score_without_a_penalty_has_a_kl_limit_all_the_same(tmp_path):
    for learned, causes in ((True, ["kl"]), (False, [])):
        guard, module = RewardHackingGuard(Limits(window=1)), Refinement([1.0, 1.0], [7.9, 8.1], None)
        module.scorer, module.kl_controller = SimpleNamespace(learned=learned), FixedKL(0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer([guard], tmp_path).fit(module, loader(2))
        assert [alarm.cause for alarm in guard.alarms] == causes


def test_recipes_for_verifiable_rewards_come_with_kl_for_learned_scores():
    for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo"):
        assert compose(["stage=ppo", f"algorithm={name}"])["kl"]["learned_scores_only"] is True
    assert compose(["stage=ppo"])["kl"]["learned_scores_only"] is False


def test_the_guard_is_chosen_on_the_command_line():
    words = ["stage=ppo", "callbacks.guard.action=stop", "callbacks.guard.limits.max_kl=9"]
    config = compose([*words, "+judge@callbacks.guard.gold=gold"])
    guard = safe_instantiate(config["callbacks"]["guard"])
    assert guard.action == "stop" and guard.detector.limits == Limits(max_kl=9) and guard.gold.name == "gold"
    assert set(config["callbacks"]) == {"record", "validate_first", "progress", "samples", "tensorboard", "guard"}


def test_a_monitor_means_over_the_answers_it_judges(tmp_path):
    monitor = ScoreMonitor(Curve([0.0, 0.0]))
    nan = float("nan")
    scores = [torch.tensor([1.0, nan, 3.0, nan]), torch.full((4,), nan)]
    monitor.scorer.score = lambda rollout, tokenizer: scores.pop(0)[: len(rollout)]
    fitted = trainer([monitor], tmp_path)
    fitted.fit(Hacked(2), loader(2))
    assert float(fitted.callback_metrics["monitor/gold"]) == 2.0 and not scores
