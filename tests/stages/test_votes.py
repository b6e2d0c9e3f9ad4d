"""Stage evaluate with people as the judge: the votes of the arena, which are on these very weights."""

import json
import math
import shutil
import warnings

import pytest
import torch

from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.checkpoint.provenance import weights_sha256
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import CheckpointError, ConfigError, DataError
from rlhf_lightning.evaluation import conclusion, report
from rlhf_lightning.functional.length_control import length_controlled_win_rate
from rlhf_lightning.people.entries import Entry
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.votes import POLICIES, WEIGHTS
from rlhf_lightning.stages.pipeline import run
from tests.support import commands, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
]
PROMPTS = '{"prompt": "the food was"}\n{"prompt": "service and"}\n'
# ppo beats sft 6 times, loses twice, ties twice; the longer answer is the winner's.
GOLD = (
    "{_target_: rlhf_lightning.scoring.functions.FunctionScorer, function: rlhf_lightning.tasks.miniature.gold.gold, "
    "isolate: false, name: gold}"
)
RANKS = [(1, 2)] * 6 + [(2, 1)] * 2 + [(1, 1)] * 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("policies")
    for seed, name in enumerate(("sft", "ppo", "other")):
        tiny.policy(seed, layers=1, scale=0.3).save_pretrained(root / name)
        tiny.tokenizer().save_pretrained(root / name)
    (root / "prompts.jsonl").write_text(PROMPTS)
    return root


def vote(path, root, names=("a", "b"), folders=("ppo", "sft"), ranks=RANKS):
    """A record in which the policies have other names than in the run."""
    with Record(path, None if path.exists() else []) as record:
        for number, said in enumerate(ranks):
            sides = 1 if number % 2 else -1
            row = {POLICIES: names[::sides], WEIGHTS: [weights_sha256(root / name) for name in folders[::sides]]}
            lengths = [4 - rank for rank in said or (1, 1)][:: -1 if number == 0 else 1]
            answers = ["words " * length for length in lengths][::sides]
            item = record.add_item(f"prompt {number}", answers, row | {"asked_by": "ann"})
            kind = "skip" if said is None else "ranking"
            ranked = None if said is None else said[::sides]
            record.add(
                Entry(f"key-{path.name[:3]}-{len(record.items()):04}", kind, item.number, "ann", ranked, (0, 1), 1.0)
            )
    return path


def words(root, votes, run_dir, *more):
    return [
        "stage=evaluate", "task=custom", "trainer=cpu", "logger=csv", f"model.path={root / 'sft'}",
        "~evaluate.policies.base", f"+evaluate.policies.sft={root / 'sft'}", f"+evaluate.policies.ppo={root / 'ppo'}",
        "evaluate.baseline=sft", f"data.prompts_validation={root / 'prompts.jsonl'}", "sampling.max_new_tokens=4",
        "evaluate.data.max_prompt_length=32", "judge=people", f"judge.votes={votes}", f"run_dir={run_dir}", *more,
    ]  # fmt: skip


def test_the_report_shows_win_rates_and_ratings_of_the_votes_on_these_weights(tmp_path, folders, monkeypatch):
    votes = vote(tmp_path / "votes.db", folders)
    vote(votes, folders, names=("c", "b"), folders=("other", "sft"), ranks=[(2, 1)] * 3)
    monkeypatch.setattr(report, "save_figures", lambda *given: [])  # two seconds
    metrics = run(compose(words(folders, votes, tmp_path / "run", f"evaluate.judges=[{GOLD}]")))
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    people = evaluation["people"]
    assert (evaluation["judge"], people["votes"], people["others"]) == ("people", 10, 3)
    assert people["pairs"] == [
        {"first": "ppo", "second": "sft", "wins": 6, "losses": 2, "both_good": 2, "both_bad": 0,
         "win_rate": pytest.approx({"share": 0.7, "low": 0.3968, "high": 0.8922}, abs=1e-4)}]  # fmt: skip
    rates = evaluation["win_rates"]["ppo vs sft"]
    assert (rates["wins"], rates["ties"], rates["losses"], rates["unpaired"], rates["win_rate"]) == (6, 2, 2, 0, 0.7)
    outcomes, lengths = [1.0] * 6 + [0.0] * 2 + [0.5] * 2, [-6.0] + [6.0] * 5 + [-6.0] * 2 + [0.0] * 2
    equal = length_controlled_win_rate(torch.tensor(outcomes), torch.tensor(lengths), torch.arange(10))
    assert rates["length_controlled"] == pytest.approx(equal._asdict()) and equal.win_rate != pytest.approx(
        0.7, abs=0.01
    )
    scores = {name: policy["summary"]["scores"] for name, policy in evaluation["policies"].items()}
    assert scores["ppo"]["people"]["mean"] == pytest.approx(math.log(0.7 / 0.3)) == metrics["evaluate/ppo/people"]
    assert scores["sft"]["people"] == {"mean": 0.0, "stderr": 0.0} and "gold" in scores["sft"]
    assert metrics["evaluate/people"] == metrics["evaluate/ppo/people"]
    assert "judged by people" in conclusion(evaluation) and "did not clearly change" in conclusion(evaluation)
    text = (tmp_path / "run/report.md").read_text()
    for part in ("| policy | people (judge) |", "## People", "| ppo vs sft | 6 | 2 | 2 | 0 | 70.0% [39.7, 89.2] |",
                 "| ppo | 0.85 | ", "3 more are on other policies or weights", "| policy | response |"):  # fmt: skip
        assert part in text, part


def test_a_clear_majority_of_people_is_told_as_clear_and_one_vote_is_not(tmp_path, folders, monkeypatch):
    monkeypatch.setattr(report, "save_figures", lambda *given: [])
    clear = vote(tmp_path / "clear.db", folders, ranks=[(1, 2)] * 30 + [(2, 1)] * 6)
    one = vote(tmp_path / "one.db", folders, ranks=[(1, 2)])
    said = {}
    for path in (clear, one):
        run(compose(words(folders, path, tmp_path / path.stem)))
        said[path.stem] = (tmp_path / path.stem / "report.md").read_text()
    assert "**people up by 1.609 (± 0.4" in said["clear"] and "drawn to 0" not in said["clear"]
    assert "**people did not clearly change" in said["one"] and "drawn to 0 by one tied vote" in said["one"]


def test_over_optimisation_is_not_measured_in_units_of_a_rating():
    summary = {"prompts": 100, "scores": {"people": {"mean": 0.0, "stderr": 0.0}, "rm": {"mean": 0.0, "stderr": 0.1}}}
    newer = {"prompts": 100, "scores": {"people": {"mean": 1.0, "stderr": 0.1}, "rm": {"mean": 9.0, "stderr": 0.1}}}
    both = {"judge": "people", "proxy": "rm", "win_rates": {}, "people": {}}
    told = both | {"policies": {"sft": {"summary": summary}, "ppo": {"summary": newer}}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "Caution" not in conclusion(told)
    newer["scores"]["people"]["mean"] = -1.0
    assert "WARNING, reward hacking: rm rose while people fell" in conclusion(told)


@pytest.mark.parametrize("ranks", [[], [None]])
def test_where_nobody_has_voted_yet_that_is_said_before_anything_is_sampled(tmp_path, folders, ranks):
    votes = vote(tmp_path / "votes.db", folders, ranks=ranks)
    with pytest.raises(DataError, match=r"votes\.db: nobody has voted yet; `rlhf-lightning arena` collects votes"):
        run(compose(words(folders, votes, tmp_path / "run")))
    assert not (tmp_path / "run/evaluation.json").exists()


def test_votes_on_older_weights_of_a_policy_are_refused_and_named(tmp_path, folders):
    votes = vote(tmp_path / "votes.db", folders, names=("ppo", "sft"), folders=("other", "sft"))
    with pytest.raises(
        DataError, match=r"evaluate\.policies\.ppo=.*; these are newer than those that were voted on"
    ) as told:
        run(compose(words(folders, votes, tmp_path / "run")))
    assert "Votes are on ppo, sft" in str(told.value) and "++evaluate.policies.ppo=null" in str(told.value)


def test_a_policy_that_nobody_compared_with_the_others_is_named(tmp_path, folders):
    votes = vote(tmp_path / "votes.db", folders)
    with pytest.raises(DataError, match=r"evaluate\.policies\.third=.*has no vote between its weights and others"):
        run(compose(words(folders, votes, tmp_path / "run", f"+evaluate.policies.third={folders / 'other'}")))


def test_two_policies_with_the_same_weights_and_a_folder_without_any_are_refused(tmp_path, folders):
    votes = vote(tmp_path / "votes.db", folders)
    with pytest.raises(DataError, match="have the same weights"):
        run(compose(words(folders, votes, tmp_path / "run", f"+evaluate.policies.third={folders / 'sft'}")))
    with pytest.raises(CheckpointError, match="no weights are there"):
        run(compose(words(folders, votes, tmp_path / "run", f"+evaluate.policies.third={tmp_path}")))


def test_a_file_that_is_no_record_of_votes_is_refused(tmp_path, folders):
    with pytest.raises(DataError, match=r"prompts\.jsonl: is not a record of judgements"):
        run(compose(words(folders, folders / "prompts.jsonl", tmp_path / "run")))


VOTES = ["judge=people", "judge.votes=votes.db"]
SCORED = ["scorer=function", "scorer.function=my_project.fn"]


@pytest.mark.parametrize(
    ("stages", "more", "says"),
    [
        ("rank", VOTES, "judge=people: .*Take judge=none, with which rank writes candidates; .*rlhf-lightning label"),
        ("sft,evaluate", VOTES, "judge=people: .*only the judge of stage=evaluate, alone.*Take another judge for sft"),
        ("ppo,evaluate", [*VOTES, *SCORED], "judge=people: .*Take another judge for ppo; .*arena"),
        ("ppo", ["+judge@callbacks.guard.gold=people", "callbacks.guard.gold.votes=v", *SCORED],
         "callbacks.guard.gold=people: .*Take a scorer of answers there"),
        ("ppo", ["judge=none", "scorer=judge", "+judge@scorer.judge=people", "scorer.judge.votes=v"], "scorer.judge="),
    ],
)  # fmt: skip
def test_people_are_the_judge_of_the_stage_evaluate_alone(tmp_path, stages, more, says):
    with pytest.raises(ConfigError, match=says):
        run(compose(["stage=pipeline", f"stages=[{stages}]", *more, f"run_dir={tmp_path}"]))


def test_weights_are_known_by_their_files_wherever_the_folder_lies(tmp_path, folders):
    copied = shutil.copytree(folders / "sft", tmp_path / "elsewhere")
    assert weights_sha256(copied) == weights_sha256(folders / "sft") != weights_sha256(folders / "ppo")
    (copied / "config.json").write_text("{}")
    assert weights_sha256(copied) == weights_sha256(folders / "sft")

    def fill(folder):
        for name in ("model.safetensors", "config.json"):
            shutil.copy(folders / "sft" / name, folder / name)

    write_folder(tmp_path / "ours", fill, {"stage": "sft", "parents": {}, "config": {}, "metrics": {}})
    assert weights_sha256(tmp_path / "ours") == weights_sha256(folders / "sft")


def test_compare_takes_votes_as_its_judge(folders, monkeypatch):
    from rlhf_lightning.cli import compare

    given = [str(folders / "sft"), str(folders / "ppo"), "--prompts", str(folders / "prompts.jsonl"), "--votes", "v.db"]
    found = compare.run([*given, "--reward", "runs/reward"])
    assert {"judge=people", "judge.votes=v.db", "evaluate.proxy=runs/reward"} <= set(found)
    done = commands.answer(["compare", *given, "--judge", "a.b"])
    assert done["code"] == 2 and "--judge and --votes both judge; leave one out" in done["err"]
