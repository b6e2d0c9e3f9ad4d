from types import SimpleNamespace

import lightning
import pytest

from rlhf_lightning.callbacks import BestPolicy, StopEarly
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.optim.kl_controllers import FixedKL
from tests.support.logging_modules import Refinement, SaveAt, Supervised, loader, trainer


def fit(tmp_path, callback, scores, kl, target=None):
    module = Refinement(scores, kl, target)
    trainer([callback], tmp_path).fit(module, loader(len(scores)))
    return module


def test_the_weights_of_the_best_mean_score_are_restored(tmp_path):
    best = BestPolicy(window=2)
    module = fit(tmp_path, best, [0.0, 3.0, 1.0, 2.5, 1.0], [1.0] * 5)
    # means over two: 1.5, 2.0, 1.75, 1.75
    assert best.best == {"rollout": 3, "score": 2.0, "kl": 1.0}
    assert module.policy.weight.item() == 3.0
    assert module.exported == []


@pytest.mark.parametrize(
    ("max_kl", "target", "winner"),
    [(None, None, 4), (None, 5.0, 3), (2.0, 5.0, 2), (9.0, 1.0, 4)],
)
def test_only_policies_within_the_kl_limit_can_win(tmp_path, max_kl, target, winner):
    best = BestPolicy(max_kl=max_kl, window=1)
    fit(tmp_path, best, [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 6.0, 6.1], target)
    assert best.best["rollout"] == winner  # 1.2 x 5 = 6 is still allowed


def test_a_mean_kl_below_the_limit_does_not_hide_a_last_one_above_it(tmp_path):
    best = BestPolicy(max_kl=4.0, window=3)
    fit(tmp_path, best, [1.0, 2.0, 3.0, 4.0, 3.5, 3.2], [2.0, 3.0, 3.5, 5.0, 3.4, 3.1])
    # means of KL: 2.8, 3.8, 4.0, 3.8; of the score: 2.0, 3.0, 3.5, 3.6
    assert best.best["rollout"] == 6
    best = BestPolicy(max_kl=4.0, window=3)
    fit(tmp_path, best, [1.0, 2.0, 3.0, 9.0], [2.0, 3.0, 3.5, 5.0])
    assert best.best["rollout"] == 3


def test_a_learned_score_without_a_penalty_has_a_limit_all_the_same(tmp_path):
    best, module = BestPolicy(window=1), Refinement([1.0, 2.0, 3.0], [1.0, 3.4, 3.6], None)
    module.scorer, module.kl_controller = SimpleNamespace(learned=True), FixedKL(0.0)
    trainer([best], tmp_path).fit(module, loader(3))
    assert best.best["rollout"] == 2


def test_the_judge_chooses_where_it_is_asked_to(tmp_path):
    best, module = BestPolicy(monitor="judge", window=1), Refinement([1.0, 2.0, 3.0], [1.0] * 3)
    said = iter([5.0, 9.0, 2.0])

    class Judge(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            pl_module.log("monitor/gold", next(said))

    trainer([Judge(), best], tmp_path).fit(module, loader(3))
    assert (best.monitor, best.best["rollout"]) == ("monitor/gold", 2)


def test_the_earlier_of_two_equals_wins(tmp_path):
    best = BestPolicy(window=1)
    fit(tmp_path, best, [1.0, 1.0], [1.0, 1.0])
    assert best.best["rollout"] == 1


def test_a_score_that_is_not_a_number_never_wins(tmp_path):
    best = BestPolicy(window=1)
    fit(tmp_path, best, [1.0, float("nan")], [1.0, 1.0])
    assert best.best["rollout"] == 1


def test_only_every_third_rollout_is_compared(tmp_path):
    best = BestPolicy(window=1, every_n_rollouts=3)
    fit(tmp_path, best, [1.0, 9.0, 2.0, 9.0], [1.0] * 4)
    assert best.best["rollout"] == 3


def test_a_fit_shorter_than_the_window_is_one_window(tmp_path):
    best = BestPolicy(window=5)
    fit(tmp_path, best, [1.0, 2.0], [1.0, 3.0])
    assert best.best == {"rollout": 2, "score": 1.5, "kl": 2.0}


@pytest.mark.parametrize(("restore_best", "final_weight"), [(True, 1.0), (False, 3.0)])
def test_the_best_policy_is_exported_with_its_provenance(tmp_path, restore_best, final_weight):
    best = BestPolicy(tmp_path / "best", window=1, restore_best=restore_best)
    module = fit(tmp_path, best, [3.0, 2.0, 1.0], [0.5] * 3)
    metrics = {"best/rollout": 1, "best/score": 3.0, "best/kl": 0.5}
    assert module.exported == [(tmp_path / "best", 1.0, {"stage": "ppo", "metrics": metrics})]
    assert module.policy.weight.item() == final_weight


@pytest.mark.parametrize(("window", "said"), [(1, 1), (5, 2)])  # two rollouts are no five in a row
def test_no_policy_within_the_limit_keeps_the_last_one_and_says_so(tmp_path, window, said):
    with pytest.warns(UserWarning, match=f"no {said} rollouts in a row stayed within the KL limit"):
        module = fit(tmp_path, BestPolicy(max_kl=0.5, window=window), [1.0, 2.0], [1.0, 1.0])
    assert module.policy.weight.item() == 2.0


@pytest.mark.parametrize(
    ("every", "says"),
    [
        (
            1,
            r"ended after 2 of the 3 rollouts of a mean \(window\): StopEarly: .*; the last policy is kept, and \S*",
        ),
        (9, r"none of the 4 rollouts was compared \(every_n_rollouts=9\)"),
    ],
)
def test_where_no_policies_were_compared_it_is_said_why(tmp_path, every, says):
    best = BestPolicy(tmp_path / "best", window=3, every_n_rollouts=every)
    stop = StopEarly("objective/scores", mode="max", patience=1 if every == 1 else 9)
    module = Refinement([2.0, 1.0, 3.0, 4.0], [1.0] * 4)
    with pytest.warns(UserWarning, match=says):
        trainer([stop, best], tmp_path).fit(module, loader(4))
    assert module.exported == [] and module.policy.weight.item() == (2.0 if every == 1 else 4.0)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # a plain loader has no position
def test_a_resumed_fit_remembers_the_best_policy(tmp_path):
    scores, kl = [5.0, 1.0, 1.0, 1.0], [1.0] * 4
    saver = SaveAt(2, tmp_path / "at2.ckpt")
    trainer([BestPolicy(window=1), saver], tmp_path).fit(Refinement(scores, kl), loader(4))
    best, module = BestPolicy(window=1), Refinement(scores, kl)
    trainer([best], tmp_path).fit(module, loader(4), ckpt_path=tmp_path / "at2.ckpt")
    assert module.rollouts == 4
    assert best.best["rollout"] == 1
    assert module.policy.weight.item() == 1.0


def test_a_module_without_the_monitored_tag_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="objective/scores"):
        trainer([BestPolicy()], tmp_path).fit(Supervised(), loader(1))


def test_an_empty_window_is_refused():
    with pytest.raises(ConfigError, match="window=0"):
        BestPolicy(window=0)
