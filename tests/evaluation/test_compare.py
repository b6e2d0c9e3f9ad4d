import pytest

from rlhf_lightning.errors import DataError
from rlhf_lightning.evaluation import compare, summarise, win_rate


def record(prompt, gold, completion="a b", **fields):
    found = {"scores": {"gold": gold}, "length": 3, "finished": True, "kl": None, "nll_ref": None, **fields}
    return {"prompt": prompt, "completion": completion, **found}


def test_a_mean_comes_with_its_standard_error():
    scores = summarise([record(str(i), gold) for i, gold in enumerate([1.0, 2.0, 3.0, 6.0])])["scores"]
    # deviations -2, -1, 0, 3: variance 14 / 3, error sqrt(14 / 3 / 4)
    assert scores["gold"] == pytest.approx({"mean": 3.0, "stderr": 1.0801234497})


def test_responses_to_one_prompt_are_one_observation():
    twice = summarise([record(prompt, gold) for prompt, gold in [("p", 0.0), ("p", 2.0), ("q", 3.0), ("q", 3.0)]])
    assert (twice["count"], twice["prompts"]) == (4, 2)
    assert twice["scores"]["gold"] == pytest.approx({"mean": 2.0, "stderr": 1.0})  # of the means 1 and 3


def test_a_single_prompt_has_no_standard_error():
    assert summarise([record("p", 1.0)])["scores"]["gold"] == {"mean": 1.0, "stderr": None}


def test_kl_is_averaged_over_the_records_that_have_one():
    records = [record("p", 0.0, kl=2.0), record("q", 0.0, kl=4.0), record("r", 0.0)]
    summary = summarise(records)
    assert summary["kl"] == pytest.approx({"mean": 3.0, "stderr": 1.0})
    assert summary["nll_ref"] is None


def test_endings_lengths_and_diversity_are_counted():
    records = [
        record("p", 0.0, "a b a b a b", length=7),
        record("q", 0.0, "a b", length=2, finished=False),
    ]
    summary = summarise(records)
    assert summary["eos_rate"] == 0.5
    assert summary["length"]["mean"] == 4.5
    assert summary["distinct_1"] == 2 / 8
    assert summary["distinct_2"] == 2 / 6  # ab and ba among five pairs and one
    assert summary["repetition_3"] == pytest.approx((2 / 4 + 0) / 2)  # aba bab aba bab, and no triple
    assert summary["same_answers"] == 0.0
    again = [record("p", 0.0, "a b"), record("p", 0.0, "a b"), record("q", 0.0, "a b"), record("r", 0.0, "c")]
    assert summarise(again)["same_answers"] == 1 / 4  # to the same prompt again is no answer to another one


def test_a_tie_is_half_a_win():
    ours = [record(str(i), gold) for i, gold in enumerate([1.0, 1.0, 1.0, 0.0])]
    theirs = [record(str(i), gold) for i, gold in enumerate([0.0, 0.0, 1.0, 1.0])]
    result = win_rate(ours, theirs, "gold")
    assert (result["wins"], result["ties"], result["losses"], result["judge"]) == (2, 1, 1, "gold")
    assert result["win_rate"] == 0.625


def test_the_interval_is_wilsons():
    ours = [record(str(i), gold) for i, gold in enumerate([1.0] * 8 + [-1.0] * 2)]
    result = win_rate(ours, [record(str(i), 0.0) for i in range(10)], "gold")
    # R: prop.test(8, 10, correct = FALSE)
    assert (result["low"], result["high"]) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))


def test_responses_meet_by_prompt_not_by_position():
    ours = [record("p", 1.0), record("q", 5.0), record("only ours", 9.0)]
    theirs = [record("q", 4.0), record("p", 2.0), record("p", 0.0)]
    result = win_rate(ours, theirs, "gold")
    assert (result["wins"], result["losses"], result["unpaired"]) == (1, 1, 2)


def test_conversations_pair_by_content():
    messages = [{"role": "user", "content": "hi"}]
    same = [{"content": "hi", "role": "user"}]
    assert win_rate([record(messages, 1.0)], [record(same, 0.0)], "gold")["wins"] == 1


def test_every_later_policy_meets_every_earlier_one():
    policies = {name: [record("p", gold), record("q", gold)] for name, gold in [("base", 0), ("sft", 1), ("ppo", 2)]}
    result = compare(policies, "gold", samples=1)
    assert {name: entry["win_rate"] for name, entry in result["win_rates"].items()} == {
        "sft vs base": 1.0,
        "ppo vs base": 1.0,
        "ppo vs sft": 1.0,
    }
    assert result["proxy"] is None
    assert [sample["prompt"] for sample in result["policies"]["ppo"]["samples"]] == ["p"]


def test_the_proxy_is_the_first_other_score():
    policies = {"sft": [record("p", 0, scores={"gold": 0.0, "proxy": 1.0})]}
    assert compare(policies, "gold")["proxy"] == "proxy"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: summarise([]), "no records"),
        (lambda: summarise([record("p", 1.0), record("q", float("nan"))]), "record 1: score 'gold' is nan"),
        (lambda: summarise([record("p", 1.0), record("q", 1.0, scores={})]), "record 1: scores"),
        (lambda: win_rate([record("p", 1.0)], [record("q", 1.0)], "gold"), "no prompt in common"),
        (lambda: win_rate([record("p", 1.0)], [record("p", 1.0)], "other"), "record 0: score 'other' is None"),
    ],
)
def test_records_that_cannot_be_compared_are_refused(act, message):
    with pytest.raises(DataError, match=message):
        act()
