import matplotlib
import pytest

from rlhf_lightning.evaluation.answer_figures import length_against_score, score_distributions
from rlhf_lightning.evaluation.figures import (
    kl_control,
    reliability,
    reward_kl_frontier,
    reward_model_accuracy,
    save_figures,
    sft_loss,
    update_health,
)
from rlhf_lightning.evaluation.history import moving_mean
from rlhf_lightning.evaluation.rollout_figures import critic, mark_exported, score_and_judge


def train(step, **tags):
    return {"step": float(step), "kind": "train", "seconds": 0.0, **{t.replace("__", "/"): v for t, v in tags.items()}}


PPO = [
    train(
        i,
        objective__scores=0.1 * i,
        objective__kl=0.5 * i,
        objective__kl_target=2.0,
        objective__kl_coef=0.1 * 2**i,
        policy__clipfrac_avg=0.05,
        policy__entropy_avg=2.0 - 0.1 * i,
        val__ratio=1.0,
        completions__mean_length=10.0,
        completions__eos_rate=0.9,
    )
    for i in range(1, 6)
]


def policy(kl, gold):
    return {"summary": {"kl": kl and {"mean": kl, "stderr": 0.1}, "scores": {"gold": {"mean": gold, "stderr": 0.25}}}}


ANSWERS = {"length": [3, 5], "scores": {"gold": [0.5, 1.5], "rm": [2.0, 4.0]}}
EVALUATION = {
    "judge": "gold",
    "proxy": "rm",
    "exported": 4,
    "policies": {
        "sft": {"summary": {"scores": {"gold": {"mean": 0.25}, "rm": {"mean": -1.0}}}, "answers": ANSWERS},
        "ppo": {"summary": {"scores": {"gold": {"mean": 1.0}, "rm": {"mean": 3.0}}}, "answers": ANSWERS},
    },
}


def test_the_first_figure_shows_score_and_judge_with_their_start_and_what_was_exported():
    rows = [row | {"monitor/gold": 0.3 * row["step"]} for row in PPO]
    figure = score_and_judge(rows, EVALUATION)
    mark_exported(figure, 4)
    drawn = [{line.get_label(): list(line.get_ydata()) for line in axis.lines} for axis in figure.axes]
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["score that is learned from", "judge gold"]
    assert [lines["start (sft)"] for lines in drawn] == [[-1.0, -1.0], [0.25, 0.25]]
    assert drawn[1]["moving mean"] == pytest.approx([0.3, 0.6, 0.9, 1.2, 1.5])
    assert list(figure.axes[1].lines[-1].get_xdata()) == [4, 4] and "exported: 4" in drawn[0]


def test_the_legend_says_what_pale_and_dark_mean():
    rows = [train(i, val__var_explained=0.1, loss__value_avg=1.0) for i in range(1, 61)]
    words = [text.get_text() for text in critic(rows).axes[0].get_legend().get_texts()]
    assert words == ["as logged", "moving mean", "no better than a constant"]


def test_single_answers_are_drawn_before_and_after():
    before, after = score_distributions(EVALUATION).axes[0].containers
    assert [sum(bar.get_height() for bar in bars) for bars in (before, after)] == [2, 2]
    points = length_against_score(EVALUATION).axes[1].collections[1].get_offsets().tolist()
    assert points == [[3.0, 2.0], [5.0, 4.0]]
    assert score_distributions({}) is None


def test_beta_is_drawn_as_it_was_and_kl_beside_its_target():
    top, bottom = kl_control(PPO).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in top.lines}
    assert lines == {"measured": [0.5, 1.0, 1.5, 2.0, 2.5], "target": [2.0] * 5}
    assert list(bottom.lines[0].get_ydata()) == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2])
    assert "nats" in top.get_ylabel()


def test_training_and_validation_loss_share_one_panel():
    validation = {"step": 2.0, "kind": "validation", "seconds": 0.0, "val/loss": 3.0}
    (axis,) = sft_loss([train(1, train__loss=4.0), train(2, train__loss=2.0), validation]).axes
    assert [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines] == [
        ("training", [1.0, 2.0], [4.0, 2.0]),
        ("validation", [2.0], [3.0]),
    ]


def test_the_frontier_pairs_kl_and_score_of_the_same_rollout():
    rows = [*PPO, train(6, objective__scores=9.0), train(7, objective__scores=8.0, objective__kl=7.0)]
    axis = reward_kl_frontier(rows).axes[0]
    points = axis.collections[0].get_offsets().tolist()
    assert points[-1] == [7.0, 8.0]  # the rollout without KL is not drawn
    assert len(points) == 6


def test_a_rollout_whose_number_is_not_finite_is_left_out_of_the_frontier():
    rows = [train(1, objective__scores=float("nan"), objective__kl=1.0), *PPO[1:]]
    assert len(reward_kl_frontier(rows).axes[0].collections[0].get_offsets()) == 4


def test_the_judges_score_of_each_policy_is_marked():
    evaluation = {
        "judge": "gold",
        "policies": {"base": policy(None, 0.0), "sft": policy(0.5, 1.0), "ppo": policy(4.0, 2.0)},
    }
    right = reward_kl_frontier(PPO, evaluation).axes[1]
    _, names = right.get_legend_handles_labels()
    assert names == ["sft", "ppo"]  # a policy without KL has no place on the axis
    assert "gold" in right.get_title(loc="left")


def test_the_judges_score_of_each_rollout_is_drawn_where_it_was_monitored():
    rows = [*PPO[:4], {**PPO[4], "monitor/gold": 0.75}]
    right = reward_kl_frontier(rows, {"judge": "gold", "policies": {}}).axes[1]
    assert right.collections[0].get_offsets().tolist() == [[2.5, 0.75]]


def test_the_calibration_error_is_weighted_by_pairs_and_empty_bins_are_left_out():
    bins = {"confidence": [0.6, 0.9, 0.0], "accuracy": [0.5, 0.8, 0.0], "count": [1, 3, 0]}
    (axis,) = reliability(bins).axes
    assert axis.get_title(loc="left") == "ECE 0.100, 4 pairs"
    assert len(axis.collections[1].get_offsets()) == 2


def test_entropy_per_token_is_preferred_to_entropy_per_response():
    labels = [axis.get_ylabel() for axis in update_health(PPO).axes]
    assert labels[2] == "entropy (nats per token)"
    fallback = [train(1, objective__entropy=30.0)]
    assert update_health(fallback).axes[2].get_ylabel() == "entropy (nats per response)"


def test_figures_without_data_are_not_drawn(tmp_path):
    assert save_figures({}, tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()
    assert reward_model_accuracy([train(1, train__loss=1.0)]) is None
    assert reliability({"confidence": [], "accuracy": [], "count": []}) is None


def test_drawing_leaves_no_global_state(tmp_path):
    before = dict(matplotlib.rcParams)
    paths = save_figures({"ppo": PPO}, tmp_path)
    assert [path.name for path in paths] == [
        "score_and_judge.png",
        "kl_control.png",
        "response_shape.png",
        "update_health.png",
        "reward_kl_frontier.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert dict(matplotlib.rcParams) == before


def test_the_moving_mean_shortens_at_the_ends():
    assert moving_mean([1.0, 2.0, 6.0, 0.0], 3) == [1.5, 3.0, pytest.approx(8 / 3), 3.0]
