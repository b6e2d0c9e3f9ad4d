"""Stages are added to a run, left out, and run alone: only what those that have begun read must be as it was."""

import json
import shutil
from pathlib import Path

import pytest

from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.checkpoint.provenance import read_sealed, sealed
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.stages.places import outputs
from rlhf_lightning.stages.run import Run

LETTERS = "scorer=function scorer.function=tests.support.trees.letters"
CHOOSES = "ppo.best_policy.monitor=judge"
BY_PEOPLE, RANKED = "rank.human_ranks=OWN/ranks.jsonl", "data.comparisons=OWN/ranks.jsonl"
PRAISE = "judge=function judge.function=tests.support.phases.praise"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's own files, without a task, and a judge."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "ranks.jsonl").write_text(json.dumps({"prompt": "a", "completions": ["b", "c"], "ranks": [0, 1]}))
    for name in ("demonstrations", "prompts"):
        (folder / f"{name}.jsonl").write_text("{}")
    (folder / "base").mkdir()
    files = [f"data.{name}={folder}/{name}.jsonl" for name in ("demonstrations", "prompts")]
    held_out = f"data.prompts_validation={folder}/prompts.jsonl"
    return folder, ["task=custom", "logger=none", "trainer=cpu", f"model.path={folder}/base", *files, held_out]


class Folder:
    """A run folder in which stages are done as far as records tell."""

    def __init__(self, own, path):
        self.path, (self.own, self.words) = path, own

    def command(self, words):
        """The run of a command of words, as it begins."""
        typed = words.replace("OWN", str(self.own)).replace("RUN", str(self.path)).split()
        pipeline = [] if any(word.startswith("stage=") for word in typed) else ["stage=pipeline"]
        judge = [] if "judge=" in words else PRAISE.split()
        return Run(compose([*pipeline, *self.words, *judge, "resume=auto", *typed, f"run_dir={self.path}"]))

    def do(self, words, stages):
        """Begin and end stages."""
        run = self.command(words)
        for stage in stages.split():
            run.files.begin(stage)
            for output in outputs(run.section(stage)):
                write_folder(Path(output), lambda _: None, run.provenance(stage, {"done": 1.0}, run.parents({})))
            if stage == "evaluate":
                (self.path / "evaluation.json").write_text("{}")

    def done(self, words):
        """The stages that a command need not do again."""
        run = self.command(words)
        places = {stage: next(reversed(outputs(run.section(stage))), None) for stage in run.files.stages}
        return " ".join(stage for stage, place in places.items() if run.files.finished(stage, place))

    def record(self):
        return read_sealed(self.path / "run.json")


@pytest.fixture
def folder(own, tmp_path):
    return Folder(own, tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "made", "commands"),
    [
        ("stages=[sft,rank,reward,ppo]", "sft rank", {
            "stages=[sft,rank]": "sft rank",
            "stages=[sft,rank,reward,ppo,evaluate] kl=fixed": "sft rank",
            "stages=[rank,dpo] sft.optimizer.lr=1": "rank",
            "stage=sft": "sft",
            "stage=rank model.path=RUN/sft": "rank",
        }),
        ("stage=sft", "sft", {"stages=[sft,rank,reward]": "sft"}),
        (f"stages=[sft,ppo,rank,reward,evaluate] {LETTERS}", "sft ppo rank reward evaluate", {
            f"stages=[sft,ppo,rank,reward] {LETTERS}": "sft ppo rank reward",
            f"stages=[ppo] {LETTERS}": "ppo",
            f"stages=[sft,ppo,rank,reward,dpo,evaluate] {LETTERS} evaluate.max_prompts=3": "sft ppo rank reward",
        }),
        (f"stages=[sft,ppo,rank] judge=none {LETTERS} {BY_PEOPLE}", "sft ppo rank", {
            f"stages=[sft,ppo,rank,evaluate] {PRAISE} {LETTERS} {BY_PEOPLE}": "sft ppo rank",
            f"stages=[sft,rank,ppo] judge=none {LETTERS} {BY_PEOPLE}": "sft rank ppo",
        }),
    ],
)  # fmt: skip
def test_what_no_stage_has_read_that_has_begun_may_be_anything(folder, words, made, commands):
    folder.do(words, made)
    assert {command: folder.done(command) for command in commands} == commands


@pytest.mark.parametrize(
    ("words", "made", "commands"),
    [
        ("stages=[sft,rank]", "sft rank", {
            "stages=[sft,rank,dpo] sft.optimizer.lr=1": r"sft\.optimizer\.lr: 2e-05 -> 1",
            "stages=[rank,reward] rank.noise=1 sft.optimizer.lr=1": r"rank\.noise: 0\.0 -> 1",
            "stages=[rank,dpo] judge.function=tests.support.trees.letters": r"judge\.function: [^;]*",
            "stages=[sft,dpo] model.dtype=bfloat16 seed=1": r"model\.dtype: [^;]*; seed: 0 -> 1; .*",
        }),
        (f"stages=[sft,dpo,ppo] {LETTERS} {RANKED} {CHOOSES}", "sft dpo ppo", {
            f"stages=[sft,ppo,dpo] {LETTERS} {RANKED} {CHOOSES}": r"dpo\.policy: .*",
            f"stages=[sft,dpo,ppo,kto] {RANKED} {LETTERS} {CHOOSES} kl=fixed": r"kl\._target_: .*",
            f"stages=[ppo] {LETTERS} {CHOOSES} judge=none ppo.policy=RUN/dpo": r"judge\._target_: .* more",
        }),
    ],
)  # fmt: skip
def test_what_a_stage_has_read_is_what_it_was_whatever_is_added(folder, words, made, commands):
    folder.do(words, made)
    for command, changed in commands.items():
        with pytest.raises(ConfigError, match=rf"run was made with another config \({changed}\); use the old values"):
            folder.command(command)


def test_a_reward_model_that_was_made_since_is_not_what_a_stage_began_with(folder):
    folder.do("stages=[sft,ppo,evaluate]", "sft ppo evaluate")
    folder.do("stages=[sft,rank,reward]", "rank reward")
    assert folder.done("stages=[sft,ppo]") == "sft ppo"
    made = f"{folder.path}/reward"
    assert folder.command("stages=[sft,ppo]").config["scorer"]["judge"]
    assert folder.command("stages=[sft,best_of_n]").config["scorer"]["model"]["path"] == made
    assert folder.command("stages=[evaluate]").section("evaluate")["proxy"] == made
    assert folder.command("stages=[sft,ppo] resume=none overwrite=true").section("ppo")["critic"] == made


def test_the_record_says_of_every_stage_what_it_ran_with(folder):
    folder.do("stages=[sft]", "sft")
    folder.do("stages=[rank,dpo] sft.optimizer.lr=1 seed=0 rank.noise=1", "rank")
    ran = folder.record()["ran"]
    assert ran["sft"]["config"]["sft"]["optimizer"]["lr"] == 2e-5 and ran["rank"]["config"]["rank"]["noise"] == 1
    assert ran.keys() == {"sft", "rank"} and not {"ppo", "kl", "judge", "scorer"} & ran["sft"]["config"].keys()
    assert folder.record()["stages"] == ["sft", "rank", "dpo"]
    folder.command("stages=[sft,rank] rank.noise=1").files.begin()
    assert folder.record()["stages"] == ["sft", "rank"] and folder.record()["ran"] == ran


def test_a_later_command_that_runs_other_stages_leaves_a_round_to_go_on_from(folder, own, tmp_path):
    folder.do("stages=[sft,rank]", "sft rank")
    folder.do("stage=evaluate", "evaluate")
    later = Folder(own, tmp_path / "later").command(f"stages=[rank] after={folder.path}")
    assert later.section("rank")["policy"] == str(folder.path / "sft")


def test_a_stage_that_failed_before_its_first_row_may_be_mended(folder):
    folder.command("stages=[sft]").files.begin("sft")
    history = folder.path / "history" / "sft.csv"
    history.parent.mkdir()
    history.write_text("step,kind,seconds\n")
    folder.command("stages=[sft] sft.optimizer.lr=1")
    history.write_text("step,kind,seconds\n1,train,2\n")
    with pytest.raises(ConfigError, match=r"sft\.optimizer\.lr: 2e-05 -> 1"):
        folder.command("stages=[sft] sft.optimizer.lr=1")


def test_a_stage_of_your_own_that_draws_as_all_stages_do_is_not_gone_on_with_at_another_temperature(folder):
    mine = "stages=[tests.support.trees.letters] +letters.policy=RUN/sft +letters.output=RUN/letters"
    folder.do(mine, "letters")
    assert folder.done(mine) == "letters"
    with pytest.raises(ConfigError, match=r"\(sampling\.temperature: 1\.0 -> 0\.5\)"):
        folder.command(f"{mine} sampling.temperature=0.5")


def test_what_may_change_may_change_for_an_output_elsewhere(folder, tmp_path):
    elsewhere = f"stages=[sft] sft.output={tmp_path}/elsewhere"
    folder.do(elsewhere, "sft")
    assert folder.done(f"{elsewhere} sft.data.micro_batch_size=1") == "sft"


def test_a_folder_of_version_0_1_0_may_be_moved(folder, own, tmp_path):
    folder.do("stages=[sft,rank]", "sft rank")
    record = folder.record()
    del record["ran"]
    (folder.path / "run.json").write_text(sealed(record))
    moved = Folder(own, Path(shutil.move(folder.path, tmp_path / "moved")))
    assert moved.done("stages=[sft,rank,reward]") == "sft rank"
    with pytest.raises(ConfigError, match=r"made with other settings \(rank\.noise: 0\.0 -> 1\)"):
        moved.done("stages=[sft,rank,reward] rank.noise=1")


def test_a_stage_that_begins_later_is_not_given_the_scorer_of_one_that_began_before_the_reward_model(folder):
    folder.do("stages=[sft,best_of_n]", "sft best_of_n")
    folder.do("stages=[rank,reward]", "rank reward")
    assert folder.done("stages=[sft,best_of_n]") == "sft best_of_n"
    assert folder.command("stages=[ppo]").config["scorer"]["model"]["path"] == f"{folder.path}/reward"
    for both in ("stages=[sft,best_of_n,ppo]", "stages=[sft,rank,reward,best_of_n,ppo]"):
        with pytest.raises(ConfigError, match=r"scorer\._target_: .*as_scorer.* -> .*RewardModelScorer"):
            folder.command(both)
