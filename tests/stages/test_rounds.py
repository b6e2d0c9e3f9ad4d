"""Rounds with people: what a run takes from the run of the round before, which `after` names."""

import re
from pathlib import Path

import pytest

from rlhf_lightning.checkpoint import read_provenance
from rlhf_lightning.config.chain import check_complete
from rlhf_lightning.config.compose import compose
from rlhf_lightning.config.screen import closing
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.stages.pipeline import run
from tests.stages.test_people import record, right
from tests.support import small_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:predict returned None"),  # answers are collected by the module
    pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader. but have no"),
]


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """The first round: candidates of SFT, and what was learned from people's rankings of them."""
    place = tmp_path_factory.mktemp("rounds")
    words = [word for word in small_pipeline.inputs(place) if not word.startswith("reward.data.train")]
    words += ["checkpoint=null", "reward.data.batch_size=2", "sft.data.batch_size=2", "ppo.rollouts=1",
              "sft.max_epochs=1", "reward.data.validation_fraction=0", "rank.data.max_prompt_length=32"]  # fmt: skip
    run(compose([*words, "stages=[sft,rank]", "judge=none", f"run_dir={place / 'first'}"]))
    labels = f"rank.human_ranks={record(place / 'labels.db', {'ann': right})}"
    run(
        compose(
            [*words, "stages=[rank,reward,ppo]", f"after={place / 'first'}", labels, f"run_dir={place / 'learned'}"]
        )
    )
    return place, words


def composed(rounds, *words):
    place, common = rounds
    config = compose([*common, f"run_dir={place / 'second'}", *words])
    check_complete(config)
    return config


def test_the_first_round_learns_from_the_policy_that_people_ranked(rounds):
    place, _ = rounds
    made = read_provenance(place / "learned/ppo")
    assert made["config"]["policy"] == made["config"]["reference"] == f"{place}/first/sft"
    assert read_provenance(place / "learned/reward")["config"]["policy"] == f"{place}/first/sft"


def test_the_last_lines_of_a_run_that_left_candidates_name_the_page_to_rank_them(rounds):
    place, words = rounds
    config = compose([*words, "stages=[sft,rank]", "judge=none", f"run_dir={place / 'first'}"])
    talk, label = closing(config, {}, 5.0).splitlines()[-2:]
    assert talk == f"talk to it  rlhf-lightning chat {place}/first/sft"
    assert label == f"rank them   rlhf-lightning label {place}/first/rankings"
    learned = compose([*words, "stages=[rank,reward,ppo]", f"run_dir={place / 'learned'}"])
    text = closing(learned, {"best/rollout": 1, "best/score": -0.001, "best/kl": -0.01}, 5.0)
    assert "rank them" not in text and "(score 0.00 at 0.0 nats)" in text


def test_candidates_of_the_second_round_are_those_of_the_new_policy(rounds):
    place, _ = rounds
    config = composed(rounds, "stages=[rank]", "judge=none", f"after={place / 'learned'}")
    assert config["rank"]["policy"] == f"{place}/learned/ppo"
    assert config["rank"]["output"] == f"{place}/second/rankings"


def test_the_second_round_goes_on_from_the_new_policy_near_the_first_reference_with_all_rankings(rounds):
    place, _ = rounds
    words = ["stages=[rank,reward,ppo]", "rank.human_ranks=labels.db", f"after={place / 'learned'}"]
    config = composed(rounds, *words)
    assert config["ppo"]["policy"] == f"{place}/learned/ppo"
    assert config["ppo"]["reference"] == config["reward"]["policy"] == f"{place}/first/sft"
    files = [f"{place}/{folder}/rankings/rankings.jsonl" for folder in ("learned", "second")]
    assert config["reward"]["data"]["train"] == files
    assert config["ppo"]["critic"] == f"{place}/second/reward"


def test_a_third_round_keeps_the_reference_and_the_rankings_of_both_before(rounds):
    place, words = rounds
    labels = f"rank.human_ranks={place / 'labels.db'}"
    second = [
        *words,
        "stages=[rank,reward,ppo]",
        f"after={place / 'learned'}",
        labels,
        f"run_dir={place / 'second-run'}",
    ]
    run(compose(second))
    config = composed(rounds, "stages=[rank,reward,ppo]", "rank.human_ranks=x.db", f"after={place / 'second-run'}")
    assert config["ppo"]["policy"] == f"{place}/second-run/ppo"
    assert config["ppo"]["reference"] == f"{place}/first/sft"
    assert [Path(file).parts[-3] for file in config["reward"]["data"]["train"]] == ["learned", "second-run", "second"]


def test_a_policy_made_in_the_round_itself_comes_before_that_of_the_round_before(rounds):
    place, _ = rounds
    words = ["stages=[rank,reward,best_of_n,ppo]", "rank.human_ranks=x.db", f"after={place / 'learned'}"]
    config = composed(
        rounds, *words, "scorer=reward_model", "scorer.model.path=x", "best_of_n.data.max_prompt_length=32"
    )
    assert config["best_of_n"]["policy"] == f"{place}/learned/ppo"
    assert config["ppo"]["policy"] == f"{place}/second/best_of_n"


def test_without_a_round_before_everything_is_as_it_was(rounds):
    config = composed(rounds, "stages=[sft,rank,reward,ppo]", "rank.human_ranks=x.db")
    assert config["after"] is None and config["ppo"]["reference"] is None
    assert config["reward"]["data"]["train"].endswith("second/rankings/rankings.jsonl")


def test_rankings_that_nobody_made_are_refused_in_a_later_round_too(rounds):
    place, _ = rounds
    with pytest.raises(ConfigError, match="human_ranks"):
        composed(rounds, "stages=[rank,reward]", "judge=none", f"after={place / 'learned'}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["stages=[sft,ppo]", "after=PLACE/learned"], "leave sft out of stages"),
        (["stages=[ppo]", "after=PLACE/nowhere"], r"nowhere: is not the folder of a run"),
        (["stages=[ppo]", "after=PLACE/learned/ppo"], r"is not the folder of a run"),
    ],
)
def test_a_round_before_that_cannot_be_gone_on_from_is_refused(rounds, words, says):
    place, _ = rounds
    with pytest.raises(ConfigError, match=says):
        composed(rounds, *(word.replace("PLACE", str(place)) for word in words))


def test_a_reference_that_is_gone_is_named(rounds):
    place, _ = rounds
    (place / "first/sft").rename(place / "first/moved")
    try:
        with pytest.raises(ConfigError, match=re.escape("first/sft is not there any more; set ppo.reference=FOLDER")):
            composed(rounds, "stages=[ppo]", f"after={place / 'learned'}")
    finally:
        (place / "first/moved").rename(place / "first/sft")
