"""Any chain of stages, as typed: what each stage takes from those before it, and what is refused before the first."""

from itertools import permutations

import pytest

from rlhf_lightning.config.chain import check_complete
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.rules.combinations import sampling_note
from rlhf_lightning.stages.places import check_reads
from tests.support import small_pipeline

POLICIES = {"sft": "sft", "best_of_n": "best_of_n", "dpo": "dpo", "kto": "kto", "ppo": "ppo"}
RANKINGS = {"rank": "rankings", "best_of_n": "demonstrations"}
LEARN_FROM_RANKINGS = ("reward", "dpo", "kto")
OTHERS = ("rank", "reward", "best_of_n", "dpo", "kto", "ppo")
LONG = [
    ("rank", "reward", "best_of_n", "dpo"),
    ("rank", "kto", "best_of_n", "dpo"),
    ("best_of_n", "rank", "dpo", "ppo"),
]


def sensible(chain):
    ranked = False
    for stage in chain:
        if stage in LEARN_FROM_RANKINGS and not ranked:
            return False
        ranked = ranked or stage in RANKINGS
    return not ("reward" in chain and "best_of_n" in chain[: chain.index("reward")])  # which asks the reward model


CHAINS = [chain for length in (1, 2) for chain in permutations(OTHERS, length) if sensible(chain)] + LONG


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's own files, without a task."""
    folder = tmp_path_factory.mktemp("own")
    words = [word for word in small_pipeline.inputs(folder) if not word.startswith("reward.data.train")]
    judge = ["judge=function", "judge.function=tests.support.phases.praise"]
    small = [f"{stage}.data.max_prompt_length=32" for stage in ("rank", "best_of_n", "evaluate")]
    return [*words, *judge, *small, f"data.prompts_validation={folder / 'prompts.jsonl'}", f"run_dir={folder / 'run'}"]


def composed(own, *words):
    config = compose([*own, *words])
    check_complete(config)
    check_reads(config)
    return config


@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_each_stage_takes_what_the_last_one_before_it_made(own, chain):
    config = composed(own, f"stages=[sft,{','.join(chain)},evaluate]")
    policy, rankings, made = "sft", None, ["sft"]
    for stage in chain:
        section = config[stage]
        assert section["policy"] == f"{config['run_dir']}/{policy}"
        if stage in LEARN_FROM_RANKINGS:
            assert section["data"]["train"] == f"{config['run_dir']}/{rankings}/rankings.jsonl"
        rankings = RANKINGS.get(stage, rankings)
        policy = POLICIES.get(stage, policy)
        made += [stage] if stage in POLICIES else []
    reward = f"{config['run_dir']}/reward" if "reward" in chain else None
    judged = config["evaluate"]
    assert list(judged["policies"]) == ["base", *made] and judged["baseline"] == "sft"
    assert judged["proxy"] == reward and config["scorer"].get("model", {}).get("path") == reward
    assert "ppo" not in chain or config["ppo"]["critic"] == (reward or "shared_trunk")


def test_a_part_of_a_chain_goes_on_from_folders_that_are_named_or_there(own, tmp_path):
    (tmp_path / "sft").mkdir()
    config = composed(own, "stages=[ppo]", f"sft.output={tmp_path / 'sft'}")
    assert config["ppo"]["policy"] == str(tmp_path / "sft") and config["ppo"]["critic"] == "shared_trunk"
    (tmp_path / "reward").mkdir()
    config = composed(own, "stages=[ppo,evaluate]", f"run_dir={tmp_path}")
    assert config["ppo"]["critic"] == config["evaluate"]["proxy"] == str(tmp_path / "reward")
    assert list(config["evaluate"]["policies"]) == ["base", "sft", "ppo"]


def test_kl_of_a_second_round_is_measured_to_the_reference_that_it_names(own, tmp_path):
    for name in ("sft", "ppo"):
        (tmp_path / name).mkdir()
    words = ["stages=[ppo,evaluate]", f"ppo.policy={tmp_path / 'ppo'}", f"ppo.reference={tmp_path / 'sft'}"]
    judged = composed(own, *words)["evaluate"]
    assert list(judged["policies"]) == ["base", "reference", "ppo"] and judged["baseline"] == "reference"
    assert judged["policies"]["reference"] == str(tmp_path / "sft")
    judged = composed(own, *words, f"sft.output={tmp_path / 'sft'}")["evaluate"]
    assert list(judged["policies"]) == ["base", "sft", "ppo"] and judged["baseline"] == "sft"
    judged = composed(own, *words, "evaluate.baseline=base")["evaluate"]
    assert list(judged["policies"]) == ["base", "ppo"] and judged["baseline"] == "base"


def test_what_the_config_names_comes_first(own, tmp_path):
    (tmp_path / "c.jsonl").touch()
    words = [f"data.comparisons={tmp_path / 'c.jsonl'}", "dpo.policy=${model.path}", "+evaluate.policies.sft=null"]
    config = composed(own, "stages=[sft,rank,kto,dpo,evaluate]", *words)
    assert config["dpo"]["data"]["train"] == config["kto"]["data"]["train"] == str(tmp_path / "c.jsonl")
    assert config["dpo"]["policy"] == config["model"]["path"]
    assert list(config["evaluate"]["policies"]) == ["base", "kto", "dpo"]
    assert config["evaluate"]["baseline"] == "base"


def test_one_sampling_is_that_of_all_stages_and_a_key_of_a_stage_is_its_own(own):
    words = ["sampling.temperature=0.9", "sampling.stop=[end]", "ppo.sampling.temperature=0.7", "sampling.top_k=3"]
    config = composed(own, "stages=[sft,rank,best_of_n,ppo,evaluate]", *words, "ppo.sampling.top_k=0")
    drawn = {stage: config[stage]["sampling"] for stage in ("rank", "best_of_n", "ppo", "evaluate")}
    assert {stage: sampling["temperature"] for stage, sampling in drawn.items()} == dict.fromkeys(drawn, 0.9) | {
        "ppo": 0.7
    }
    assert all(sampling["stop"] == ["end"] for sampling in drawn.values())
    note = sampling_note({stage: config[stage] for stage in ("sft", "rank", "ppo")})
    assert note.endswith(
        ": rank.sampling.temperature=0.9, ppo.sampling.temperature=0.7, rank.sampling.top_k=3, ppo.sampling.top_k=0"
    )
    assert sampling_note({stage: config[stage] for stage in ("rank", "evaluate")}) is None
    assert sampling_note({"rank": config["rank"] | {"human_ranks": "people.jsonl"}, "ppo": config["ppo"]}) is None


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["stages=[rank]"], ConfigError, r"rank\.policy is not set: no stage before rank .* add sft\.output=FOLDER"),
        (["stages=[sft,dpo]"], ConfigError, r"dpo\.data\.train is not set; add data\.comparisons=FILE"),
        (["stages=[ppo]", "sft.output=typo"], ConfigError, r"ppo\.policy=typo: is not there .* put sft"),
        (["stages=[sft,ppo]", "reward.output=at/typo"], ConfigError, r"path=at/typo: is not there .* put reward"),
        (["stages=[sft,best_of_n,reward]"], ConfigError, r"scorer.* not there when best_of_n begins; put reward"),
        (["stages=[sft,dpo]", "data.comparisons=no.jsonl"], DataError, r"no\.jsonl: no such file; check dpo\.data"),
        (["stages=[sft,rank,sft]"], ConfigError, "sft stands there twice"),
        (["stages=[sft,evaluate]", "evaluate.baseline=stf"], ConfigError, "is none of .* Did you mean sft"),
        (
            ["stages=[sft,rank,kto]", "rank.max_prompts=20", "kto.data.batch_size=80"],
            ConfigError,
            r"kto\.data\.batch_size=80: rank makes at most 80 .*20 x rank\.samples_per_prompt=4, some are held out",
        ),
        (
            ["stages=[sft,best_of_n]", "best_of_n.max_prompts=20", "best_of_n.sft.data.batch_size=32"],
            ConfigError,
            r"lower best_of_n\.sft\.data\.batch_size or raise best_of_n\.max_prompts",
        ),
        (["stages=[sft,my.distil]", "trusted_targets=[my]"], ConfigError, "stages: cannot import my: No module"),
        (
            ["stages=[sft,tests.support.phases.praise]"],
            ConfigError,
            r"praise has no section (.|\n)*\npraise: {policy: '\${made:policy,\${sft\.output}}', output: ",
        ),
        (
            ["stages=[sft,my.distil]", "trusted_targets=[my]", "+distil.makes=polcy"],
            ConfigError,
            r"distil\.makes=polcy: must be one of policy, reward_model, comparisons, nothing\. Did you mean policy",
        ),
    ],
)
def test_a_chain_that_cannot_work_is_refused_before_its_first_stage(own, words, error, says):
    with pytest.raises(error, match=says):
        composed(own, *words)


def test_rankings_that_people_are_to_make_are_not_learned_from_in_the_same_run(own):
    with pytest.raises(ConfigError, match=r"no judge is configured.* reward learns from"):
        composed([word for word in own if "judge" not in word], "stages=[sft,rank,reward]")


def test_a_stage_of_a_command_for_another_one_says_what_to_type():
    with pytest.raises(ConfigError, match="dpo has no section in this config; add stage=pipeline"):
        check_complete(compose(["stage=sft", "stages=[sft,dpo]"]))
