import math
import re
import time

import pytest
import yaml
from omegaconf import OmegaConf

from rlhf_lightning.config.compose import compose, load_config
from rlhf_lightning.errors import ConfigError, RewardFunctionError
from rlhf_lightning.scoring.chat_client import KEY, ChatClient
from rlhf_lightning.scoring.llm_judge import LLMJudge
from tests.gates.gate_sources import ROOT
from tests.support.chat_server import PART, chat_server, longer

TEMPLATE = yaml.safe_load((ROOT / "conf/judge/llm.yaml").read_text())["template"]
KNOWN = frozenset(("a", "b", "tie"))


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(KEY, raising=False)


def judge(address, template=TEMPLATE, **settings):
    found = LLMJudge(address, "m", template, **settings)
    found.client.http.pause = 0.001
    return found


def test_scores_are_the_shares_of_the_other_answers_that_one_beats():
    with chat_server() as (address, seen):
        scorer = judge(address)
        scorer.compare([("Why?", ["xxx", "x", "xx", "yy"])])
    assert scorer.shares("Why?", ["xxx", "x", "xx", "yy"]) == [1, 0, 0.5, 0.5]
    assert len(seen) == 2 * 6
    assert scorer.report()["position_bias"] == scorer.report()["unsure"] == 0


def test_both_orders_are_asked_and_a_bias_for_the_first_is_measured_and_cancels():
    with chat_server(lambda question: "A") as (address, seen):
        scorer = judge(address)
        scorer.compare([("Why?", ["one", "other"])])
    shown = [tuple(text for _, text in PART.findall(body["messages"][0]["content"])) for _, body in seen]
    assert sorted(shown) == [("one", "other"), ("other", "one")]
    assert scorer.shares("Why?", ["one", "other"]) == [0.5, 0.5]
    assert scorer.report() == {"pairs": 1, "requests": 2, "unreadable": 0, "position_bias": 0.5, "unsure": 1}
    assert scorer.unsure("Why?", ["one", "other"]) == 1


def test_a_known_position_bias_is_recovered():
    """One time in five the order decides, else the length."""

    def says(question):
        return "B" if sum(map(ord, question)) % 5 == 0 else longer(question)

    with chat_server(says) as (address, _):
        scorer = judge(address)
        groups = [(f"q{n}", [f"{n} x", f"{n} longer {n}"]) for n in range(250)]
        scorer.compare(groups)
    # B gains where A would have won, half of the time: the first loses a fifth of a half.
    assert scorer.report()["position_bias"] == pytest.approx(-0.1, abs=0.05)


@pytest.mark.parametrize("fault", [429, 500, 503, "garbage", "closed", (429, {"Retry-After": "0"})])
def test_a_failure_that_may_pass_is_tried_again(fault):
    with chat_server(faults=[fault, fault]) as (address, seen):
        scorer = judge(address, concurrency=1, retries=2)
        scorer.compare([("Why?", ["xx", "x"])])
    assert scorer.shares("Why?", ["xx", "x"]) == [1, 0] and len(seen) == 4


def test_a_server_that_stays_silent_ends_with_what_to_do():
    says = r"no answer after 3 tries: HTTP 503 .*raise judge\.retries"
    with chat_server(faults=[503] * 99) as (address, seen), pytest.raises(RewardFunctionError, match=says):
        judge(address, concurrency=1, retries=2).compare([(f"q{n}", ["xx", "x"]) for n in range(9)])
    assert len(seen) == 3  # nothing else is asked once one question has failed for good


def test_a_try_that_takes_too_long_is_given_up():
    def slow(question):
        time.sleep(0.3)
        return "A"

    with chat_server(slow) as (address, _), pytest.raises(RewardFunctionError, match="timed out"):
        judge(address, retries=0, timeout=0.05).compare([("Why?", ["xx", "x"])])


@pytest.mark.parametrize("state", [400, 401, 404, 302])
def test_a_refusal_is_not_tried_again(state):
    says, fault = f"refuses the request: HTTP {state}", (state, {"Location": "http://127.0.0.1:9/"})
    with chat_server(faults=[fault]) as (address, seen), pytest.raises(RewardFunctionError, match=says):
        judge(address, concurrency=1).compare([("Why?", ["xx", "x"])])
    assert len(seen) == 1


@pytest.mark.parametrize("reply", ["A", " a.", "**A**", "'A'"])
def test_one_word_is_read_however_it_is_dressed(reply):
    with chat_server(lambda question: reply) as (address, _):
        assert ChatClient(address, "m", retries=0).answer("?", KNOWN) == "a"


@pytest.mark.parametrize("reply", ["A is better", "", "C", "A B", "I think: A"])
def test_what_is_not_one_of_the_words_is_asked_again_then_counted_and_not_judged(reply):
    with chat_server(lambda question: reply) as (address, seen):
        scorer = judge(address, retries=1)
        scorer.compare([("Why?", ["xx", "x"])])
    assert len(seen) == 4 and scorer.report()["unreadable"] == 2
    assert all(map(math.isnan, scorer.shares("Why?", ["xx", "x"])))
    assert scorer.unsure("Why?", ["xx", "x"]) == 1


def test_a_second_run_asks_nothing_and_another_model_does(tmp_path):
    with chat_server() as (address, seen):
        for _ in range(2):
            scorer = judge(address, cache_dir=str(tmp_path))
            scorer.compare([("Why?", ["xxx", "x", "xx"])])
            assert scorer.shares("Why?", ["xxx", "x", "xx"]) == [1, 0, 0.5]
        assert len(seen) == 6
        LLMJudge(address, "other", TEMPLATE, cache_dir=str(tmp_path)).compare([("Why?", ["xxx", "x"])])
        assert len(seen) == 8


def test_a_damaged_file_of_the_cache_is_asked_again(tmp_path, caplog):
    with chat_server() as (address, seen):
        judge(address, cache_dir=str(tmp_path)).compare([("Why?", ["xx", "x"])])
        file = next(tmp_path.rglob("*.jsonl"))
        file.write_bytes(file.read_bytes()[:-9])
        judge(address, cache_dir=str(tmp_path)).compare([("Why?", ["xx", "x"])])
    assert len(seen) == 3 and "1 lines are damaged, so their questions are asked again" in caplog.text


def test_the_key_comes_from_the_environment_and_stands_in_no_message(monkeypatch, tmp_path):
    monkeypatch.setenv(KEY, "sesame-1234")
    with chat_server(faults=[401, "A"]) as (address, seen):
        client = ChatClient(address, "m", cache_dir=str(tmp_path))
        with pytest.raises(RewardFunctionError, match=f"the key is that of {KEY}") as error:
            client.answer("?", KNOWN)
        assert client.answer("?", KNOWN) == "a"
    assert [headers["Authorization"] for headers, _ in seen] == ["Bearer sesame-1234"] * 2
    assert "sesame" not in str(error.value)
    assert all("sesame" not in file.read_text() for file in tmp_path.rglob("*.jsonl"))


def test_no_more_requests_are_under_way_than_allowed():
    under_way, most = [0], [0]

    def says(question):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        time.sleep(0.01)
        under_way[0] -= 1
        return longer(question)

    with chat_server(says) as (address, _):
        judge(address, concurrency=3).compare([(f"q{n}", ["xx", "x"]) for n in range(10)])
    assert 1 < most[0] <= 3


def test_what_an_answer_says_is_not_taken_for_a_part_of_the_template():
    with chat_server() as (address, seen):
        judge(address).compare([("{first}", ["{second}", "{prompt}{prompt}"])])
    shown = [dict(PART.findall(body["messages"][0]["content"])) for _, body in seen]
    assert {"A": "{second}", "B": "{prompt}{prompt}"} in shown


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"address": "file:///etc/passwd"}, "must begin with http"),
        ({"template": "{prompt} {first}"}, "has no {second}"),
        ({"retries": -1}, "retries=-1"),
        ({"concurrency": 0}, "concurrency=0"),
    ],
)
def test_what_cannot_work_is_refused(settings, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        judge(**{"address": "http://127.0.0.1:9/v1", **settings})


def test_the_address_stands_on_the_command_line_and_in_no_file():
    word = "judge.base_url=http://127.0.0.1:9/v1"
    assert compose(["stage=rank", "judge=llm", "judge.model=m", word])["judge"]["base_url"] == "http://127.0.0.1:9/v1"
    node = {"_target_": "rlhf_lightning.scoring.llm_judge.LLMJudge", "base_url": "http://127.0.0.1:9/v1", "model": "m"}
    file = OmegaConf.create({"judge": {**node, "template": "{prompt} {first} {second}"}})
    with pytest.raises(ConfigError, match=r"judge\.base_url.*address"):
        load_config(file, [])
    assert load_config(file, [word])["judge"]["model"] == "m"
