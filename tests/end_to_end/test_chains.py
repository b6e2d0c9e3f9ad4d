"""Chains of stages from end to end on a tiny model: two that do without a reward model, and one with a user's stage."""

import json
import sys

import lightning
import pytest

from rlhf_lightning.checkpoint import verify_folder
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import CheckpointError, ConfigError, DataError
from rlhf_lightning.stages.pipeline import run
from tests.gates.gate_docs import blocks
from tests.gates.gate_sources import ROOT
from tests.support import cluster, small_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
]
PAGE = blocks((ROOT / "docs" / "extending.md").read_text())
MY_STAGES = next(block.body for block in PAGE if "def run_distil" in block.body)
SECTION = next(block.body for block in PAGE if block.language == "yaml" and "distil:" in block.body)
SMALL = ["reward.data.batch_size=2", "ppo.rollouts=2", "ppo.data.batch_size=4", "ppo.settings.num_minibatches=1"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    sizes = [
        f"{stage}.{size}"
        for stage in ("rank", "best_of_n", "evaluate")
        for size in ("data.max_prompt_length=32", "data.batch_size=8")
    ]
    batches = [f"{part}.data.{size}=2" for part in ("sft", "dpo", "kto", "best_of_n.sft") for size in ("batch_size",)]
    fractions = [f"{part}.data.validation_fraction=0.25" for part in ("sft", "dpo", "kto", "best_of_n.sft")]
    judge = ["judge=function", "judge.function=tests.support.phases.praise", "judge.isolate=false"]
    given = [word for word in small_pipeline.inputs(folder) if not word.startswith("reward.data.train")]
    return [*given, *sizes, *batches, *fractions, *judge, f"data.prompts_validation={folder / 'prompts.jsonl'}"]


@pytest.mark.parametrize(
    ("chain", "teacher", "rankings", "batch"),
    [
        ("sft,rank,kto", "sft", "rankings", "kto.data.batch_size"),
        ("sft,best_of_n,dpo", "best_of_n", "demonstrations", "best_of_n.sft.data.batch_size"),
    ],
)
def test_a_chain_without_a_reward_model_runs_as_typed(words, tmp_path, chain, teacher, rankings, batch):
    last, typed = chain.rpartition(",")[2], [*words, f"stages=[{chain},evaluate]", f"run_dir={tmp_path}"]
    with pytest.raises(DataError, match=f"{batch} asks for 64 .* lower {batch}"):
        run(compose([*typed, f"{batch}=64"]))
    with pytest.raises(ConfigError, match=r"made with another config \(sft\.optimizer\.lr: "):
        run(compose([*typed, "resume=auto", "sft.optimizer.lr=1"]))
    metrics = run(compose([*typed, "resume=auto"]))  # with the key mended, since that stage has not begun
    parents = verify_folder(tmp_path / last, expect_stage=last)["parents"]
    assert parents["policy"]["files"] == verify_folder(tmp_path / teacher)["files"]
    assert parents["data"]["path"] == str(tmp_path / rankings / "rankings.jsonl")
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(evaluation["policies"]) == ["base", *dict.fromkeys(["sft", teacher, last])]
    assert f"evaluate/{last}/praise" in metrics


def test_all_stages_run_sharded_over_two_machines_also_where_batches_do_not_divide(words, tmp_path):
    odd = [f"{stage}.data.batch_size=3" for stage in ("rank", "best_of_n", "evaluate")]
    machines = ["trainer=fsdp2", "trainer.num_nodes=2", "trainer.accelerator=cpu", "sft.max_epochs=1"]
    learned = ["rollout.gather=layer", "reward.data.validation_fraction=0.25", *SMALL]
    chain = "stages=[sft,rank,reward,best_of_n,ppo,evaluate]"
    log = tmp_path / "log"
    run = [*words, *odd, *machines, *learned, chain, f"run_dir={tmp_path / 'run'}"]
    assert cluster.torchrun(2, 1, run, log, seconds=300) == [0, 0], log.read_text()
    judged = json.loads((tmp_path / "run" / "evaluation.json").read_text())["policies"]
    assert list(judged) == ["base", "sft", "best_of_n", "ppo"]
    assert all(-10 < policy["summary"]["scores"]["praise"]["mean"] < 10 for policy in judged.values())


class NoSteps(lightning.LightningDataModule):
    def __init__(self, tokenizer, train, batch_size, validation_fraction):
        super().__init__()


def test_a_data_module_that_does_not_count_micro_batches_is_named_by_its_key(words, tmp_path):
    target = f"sft.data._target_={__name__}.NoSteps"
    with pytest.raises(ConfigError, match=r"^sft\.data: NoSteps has no accumulate_for\(world_size\)"):
        run(compose([*words, "stages=[sft]", target, f"run_dir={tmp_path}"]))


@pytest.fixture
def my_project(tmp_path, monkeypatch):
    """A package and a config file of a user, outside of the repository."""
    (tmp_path / "site").mkdir()
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "site" / "my_stages.py").write_text(MY_STAGES + "\ncalls = []\n")
    (tmp_path / "conf" / "experiment" / "distil.yaml").write_text(SECTION + "\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "experiment=distil"]
    sys.modules.pop("my_stages", None)


def test_a_stage_of_the_user_runs_in_a_chain_and_is_not_run_again(words, my_project, tmp_path, monkeypatch):
    saved = ["checkpoint.every_n_minutes=null", "checkpoint.every_n_steps=1"]
    chain = [*words, *my_project, *saved, "stages=[sft,my_stages.distil,evaluate]", f"run_dir={tmp_path / 'run'}"]
    metrics = run(compose(chain))
    folder = verify_folder(tmp_path / "run" / "distil", expect_stage="distil")
    assert folder["parents"]["policy"]["files"] == verify_folder(tmp_path / "run" / "sft")["files"]
    assert folder["config"]["max_epochs"] == 1 and folder["metrics"]["train/loss"] == metrics["train/loss"]
    assert list((tmp_path / "run" / "checkpoints" / "distil").iterdir())
    assert (tmp_path / "run" / "history" / "distil.csv").is_file()
    assert "distil" in json.loads((tmp_path / "run" / "evaluation.json").read_text())["policies"]
    monkeypatch.setattr(sys.modules["my_stages"], "train", None)  # which would not survive to be called
    run(compose([*chain, "resume=auto"]))
    with pytest.raises(ConfigError, match=r"was made with another config.*distil\.policy: "):
        run(compose([*chain, "resume=auto", "distil.policy=elsewhere"]))


def test_a_stage_of_the_user_has_its_own_check(words, my_project, tmp_path):
    chain = [*words, *my_project, "stages=[sft,my_stages.distil]", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=r"distil\.max_epochs: more than 3"):
        run(compose([*chain, "distil.max_epochs=4"]))
    assert not (tmp_path / "run" / "sft").exists()


def test_a_stage_of_the_user_that_made_no_policy_is_named_by_the_one_that_reads_it(words, my_project, tmp_path):
    module = tmp_path / "site" / "my_stages.py"
    module.write_text(module.read_text() + "distil = lambda run: {}\ndistil.__module__ = __name__\n")
    chain = [*words, *my_project, "stages=[my_stages.distil,evaluate]", f"run_dir={tmp_path / 'run'}"]
    policy = [f"distil.policy={compose(words)['model']['path']}"]
    with pytest.raises(CheckpointError, match=r"distil(.|\n)*If distil makes no policy, set distil\.makes: nothing"):
        run(compose([*chain, *policy]))
    assert "evaluate/base/praise" in run(compose([*chain, *policy, "+distil.makes=nothing", "resume=auto"]))


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("my_stages.distill", r"my_stages has no distill; did you mean my_stages\.distil\?"),
        ("my_stages.calls", r"my_stages\.calls is a list; name a function of the run, or a Stage"),
    ],
)
def test_what_is_no_stage_is_refused_before_the_first_one(words, my_project, tmp_path, stage, says):
    section = f"+{stage.rpartition('.')[2]}={{}}"
    with pytest.raises(ConfigError, match=says):
        run(compose([*words, *my_project, section, f"stages=[sft,{stage}]", f"run_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run" / "sft").exists()


def test_a_file_cannot_bring_a_stage_that_nobody_typed(words, my_project, tmp_path):
    file = tmp_path / "conf" / "experiment" / "distil.yaml"
    file.write_text(file.read_text() + "stages: [sft, my_stages.distil]\n")
    with pytest.raises(
        ConfigError, match=r"stages: my_stages\.distil is not on the list[^$]*trusted_targets=\[my_stages\]"
    ):
        compose([*words, *my_project])
    assert compose([*words, *my_project, "trusted_targets=[my_stages]"])["stages"] == ["sft", "my_stages.distil"]
    assert "my_stages" not in sys.modules
