"""From what people said to a reward model: rankings, their provenance, and the agreement beside the accuracy."""

import json
import logging
import re

import pytest

from rlhf_lightning.checkpoint import read_provenance
from rlhf_lightning.config.compose import compose
from rlhf_lightning.data.check import check
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.evaluation.figures import reward_model_accuracy
from rlhf_lightning.evaluation.trust import accuracy_text, conclusion
from rlhf_lightning.labelling.ranking import write_rows
from rlhf_lightning.people.entries import Entry
from rlhf_lightning.people.exchange import exported
from rlhf_lightning.people.judgements import Item
from rlhf_lightning.people.record import Record
from rlhf_lightning.people.training import ceiling_of, read_record
from rlhf_lightning.stages.pipeline import run
from tests.support import phases, small_pipeline

ACCURACY = {"val/accuracy": 0.72, "val/accuracy_low": 0.66, "val/accuracy_high": 0.78, "val/num_pairs": 200.0}


def record(path, people):
    """What people said of the rankings of `phases`: by name, a function from the true ranks to theirs."""
    items = [Item(n, p, tuple(c), {"prompt": p, "completions": c}) for n, (p, c, _) in enumerate(phases.RANKINGS, 1)]
    with Record(path, items) as file:
        for name, ranks_of in people.items():
            for item, (_, answers, ranks) in zip(items, phases.RANKINGS, strict=True):
                if (said := ranks_of(ranks)) is not None:
                    order = tuple(range(len(answers)))
                    file.add(Entry(f"{name} {item.number}", "ranking", item.number, name, tuple(said), order, 2.0))
    return path


def right(ranks):
    return ranks


def wrong(ranks):
    return [max(ranks) + 1 - rank for rank in ranks]


@pytest.fixture
def words(tmp_path):
    own = [word for word in small_pipeline.inputs(tmp_path) if not word.startswith("reward.data.train")]
    return [*own, f"run_dir={tmp_path / 'run'}", "reward.data.batch_size=2", "reward.data.validation_fraction=0.5",
            f"sft.output={tmp_path / 'model'}", "checkpoint=null", "rank.data.max_prompt_length=32"]  # fmt: skip


def test_a_record_becomes_rankings_and_a_reward_model_that_names_how_far_people_agree(tmp_path, words, caplog):
    people = {"ann": right, "ben": right, "cat": wrong}
    labels = record(tmp_path / "labels.db", people)
    with caplog.at_level(logging.INFO):
        metrics = run(compose([*words, "stages=[rank,reward]", f"rank.human_ranks={labels}"]))
    # Of the pairs that one of three people orders, another agrees one time in three: ann with ben, and nobody else.
    assert metrics["people_agree"] == metrics["rank/people_agree"] == pytest.approx(1 / 3)
    assert re.search(r"the reward model ranks held-out pairs with .*people agree on 33 %", caplog.text)
    rows = [json.loads(line) for line in (tmp_path / "run/rankings/rankings.jsonl").read_text().splitlines()]
    assert [row["ranks"] for row in rows] == [ranks for *_, ranks in phases.RANKINGS]
    assert all(row["judgements"] == 3 and set(row["annotators"]) == set(people) for row in rows)
    kept = read_provenance(tmp_path / "run/rankings")["people"]
    assert (kept["merge"], kept["items"], kept["shared"], kept["left_out"]) == ("weighted", 4, 4, 0)
    assert kept["alpha"] < 0.2 and kept["tau"] < 0
    weights = {name: one["weight"] for name, one in kept["annotators"].items()}
    assert weights["ann"] == weights["ben"] > weights["cat"]
    made = read_provenance(tmp_path / "run/reward")
    assert made["metrics"]["people_agree"] == pytest.approx(1 / 3)


def test_one_person_is_told_as_one(tmp_path):
    said = {len(names): read_record(record(tmp_path / f"{len(names)}.db", dict.fromkeys(names, right)), "weighted")
            for names in (["ann"], ["ann", "ben"])}  # fmt: skip
    assert said[1].sentence().startswith("1 person ranked 4 items, 0 of them by two or more")
    assert said[2].sentence().startswith("2 people ranked 4 items, 4 of them by two or more")


def test_the_rankings_pass_the_check_of_data(tmp_path, words):
    labels = record(tmp_path / "labels.db", {"ann": right, "ben": lambda ranks: ranks if max(ranks) == 3 else None})
    run(compose([*words, "stages=[rank]", f"rank.human_ranks={labels}", "rank.merge=majority"]))
    told = json.loads(check([str(tmp_path / "run/rankings/rankings.jsonl"), "--stage", "reward", "--json"]))
    assert (told["rows"], told["bad_rows"], told["problems"], told["notes"]) == (4, 0, [], [])
    assert read_provenance(tmp_path / "run/rankings")["people"]["merge"] == "majority"


def test_an_export_gives_what_its_record_gives_without_what_was_taken_back(tmp_path, words):
    labels = record(tmp_path / "labels.db", {"ann": right, "ben": right, "cat": wrong})
    with Record(labels) as file:
        first = file.entries()[0]
        undo = Entry("undo", "undo", first.item, "ann", None, first.order, 0.0, takes_back=first.number)
        file.add(undo)
    rows = list(exported(labels))
    write_rows(tmp_path / "export.jsonl", rows)
    for name in ("labels.db", "export.jsonl"):
        own = [*words, f"run_dir={tmp_path / name}-run", "stages=[rank]", f"rank.human_ranks={tmp_path / name}"]
        run(compose(own))
    files = [tmp_path / f"{name}-run/rankings/rankings.jsonl" for name in ("labels.db", "export.jsonl")]
    assert files[0].read_text() == files[1].read_text()
    assert json.loads(files[0].read_text().splitlines()[0])["judgements"] == 2
    write_rows(tmp_path / "export.jsonl", [*rows[:1], {**rows[1], "ranks": [1]}])
    with pytest.raises(DataError, match=r"export.jsonl:2: ranks: are 1 for 3 completions"):
        run(compose([*words, "stages=[rank]", f"rank.human_ranks={tmp_path / 'export.jsonl'}"]))


def test_a_file_of_rankings_is_taken_as_it_is_and_says_nothing_of_people(tmp_path, words):
    metrics = run(compose([*words, "stages=[rank]", f"rank.human_ranks={tmp_path / 'rankings.jsonl'}"]))
    assert "people" not in read_provenance(tmp_path / "run/rankings") and "rank/people_agree" not in metrics


def test_a_record_in_which_nobody_ranked_is_refused_before_anything_is_written(tmp_path, words):
    labels = record(tmp_path / "labels.db", {})
    with pytest.raises(DataError, match=r"labels.db: nobody has ranked an item yet"):
        run(compose([*words, "stages=[rank]", f"rank.human_ranks={labels}"]))
    assert not (tmp_path / "run/rankings").exists()


def test_an_unknown_way_to_merge_is_refused_before_the_first_stage(tmp_path, words):
    with pytest.raises(ConfigError, match=re.escape("rank.merge=mean: must be one of weighted, majority")):
        run(compose([*words, "stages=[rank]", f"rank.human_ranks={tmp_path / 'rankings.jsonl'}", "rank.merge=mean"]))


def test_the_accuracy_stands_beside_the_agreement_of_people():
    assert accuracy_text(ACCURACY | {"people_agree": 0.743}).endswith("guessing gives 0.5, people agree on 74 %)")
    assert "people" not in accuracy_text(ACCURACY)
    assert "people agree on 74 %" in conclusion(ACCURACY | {"people_agree": 0.743})


def test_the_figure_draws_the_agreement_of_people_as_a_line():
    rows = [{"kind": "train", "step": n, "train/accuracy": 0.6, "train/margin": 0.1} for n in (1, 2)]
    axis = reward_model_accuracy(rows, 0.74).axes[0]
    (line,) = [line for line in axis.get_lines() if line.get_label() == "people agree on 74 %"]
    assert set(line.get_ydata()) == {0.74}
    assert all("people" not in line.get_label() for line in reward_model_accuracy(rows).axes[0].get_lines())


def test_the_agreement_behind_several_rankings_counts_each_by_its_cases():
    first = {"ceiling": {"mean": 0.8, "stderr": 0.1, "cases": 30.0}}
    second = {"ceiling": {"mean": 0.5, "stderr": 0.2, "cases": 10.0}}
    found = ceiling_of([first, second, {"ceiling": {"mean": None, "stderr": None, "cases": 0.0}}])
    assert found["people_agree"] == pytest.approx((0.8 * 30 + 0.5 * 10) / 40)
    assert found["people_agree_stderr"] == pytest.approx((3.0**2 + 2.0**2) ** 0.5 / 40)
    assert ceiling_of([]) == {}
