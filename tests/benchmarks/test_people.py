import random
from itertools import combinations

import pytest

from benchmarks.people import Outcome, table
from benchmarks.people_play import Person, rank_by_hand, rank_on_the_page, scales_for
from rlhf_lightning.labelling.ranking import write_rows
from rlhf_lightning.people import record
from rlhf_lightning.people.candidates import read_candidates
from rlhf_lightning.tasks.miniature.gold import gold

ANSWERS = ("good .", "good food .", "bad .", "the food was great and the service was kind .")


@pytest.fixture
def candidates(tmp_path):
    rows = [{"prompt": f"the food {n}", "completions": random.Random(n).sample(ANSWERS, 4)} for n in range(12)]
    write_rows(tmp_path / "candidates.jsonl", rows)
    return tmp_path / "candidates.jsonl"


def test_a_person_orders_as_many_pairs_right_as_was_asked_for(candidates):
    items = read_candidates(candidates)
    for wanted, scale in zip((0.9, 0.7), scales_for(items, (0.9, 0.7)), strict=True):
        person, right, pairs = Person("ann", scale, random.Random(0)), 0, 0
        for item in items * 60:
            scores, ranks = gold([item.prompt] * 4, item.completions), person.ranks(item.prompt, item.completions)
            for a, b in combinations(range(4), 2):
                if scores[a] != scores[b]:
                    right, pairs = right + ((scores[a] > scores[b]) == (ranks[a] < ranks[b])), pairs + 1
        assert right / pairs == pytest.approx(wanted, abs=0.03)


def test_people_on_the_page_say_what_they_would_say_by_hand(candidates, tmp_path, monkeypatch):
    """Without noise a ranking depends on the item alone, so that the way through the page must change nothing."""
    monkeypatch.setenv("no_proxy", "*")
    people = [Person(name, 0.0, random.Random(name)) for name in ("ann", "ben")]
    for way, name in ((rank_by_hand, "hand.db"), (rank_on_the_page, "page.db")):
        way(tmp_path / name, candidates, people, 1)
    said = [
        {(one.annotator, one.item): one.ranks for one in record.judgements(tmp_path / name)}
        for name in ("hand.db", "page.db")
    ]
    assert said[0] == said[1] and len(said[0]) == 24


def test_what_was_not_reached_is_named():
    outcome = Outcome(0, 0.80, 0.88, 0.8, 0.6, 0.9, 0.8, 0.6, 0.7, 0.1, 0.5)
    assert len(outcome.faults()) == 2 and outcome._replace(merged=0.87, ppo=0.8).faults() == []
    assert table([outcome]).splitlines()[-1].split()[1] == "0.800"
