"""A reward service that is busy, slow, wrong or away costs no score; what it has said is not asked again."""

import math
import os
import signal
import threading
import time
import urllib.error

import pytest
import torch

from rlhf_lightning import signals
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import ConfigError, RewardFunctionError
from rlhf_lightning.rollout import LoopEngine, Sampling
from rlhf_lightning.scoring import RewardSources, Source
from rlhf_lightning.scoring.remote import KEY, RemoteScorer
from tests.support import small_run, tiny
from tests.support.reward_service import brevity, reward_service

ROWS = [{"prompt": f"question {n}", "subject": n % 3} for n in range(24)]
TEXTS = ["x" * (n % 7) for n in range(24)]
SCORES = [-float(len(text)) for text in TEXTS]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(KEY, raising=False)


def a_rollout():
    engine = LoopEngine()
    engine.sync(tiny.policy(scale=0.3), (1,), 0, version=0)
    engine.seed(0)
    return engine.generate(tiny.prompts("the food was", "we left", repeats=3), Sampling(max_new_tokens=10))


@pytest.fixture
def service():
    with reward_service() as started:
        yield started


def remote(service, pause=0.01, **settings):
    made = RemoteScorer(service.address, **{"batch_size": 5, "timeout": 5.0, **settings})
    made.client.pause = pause
    return made


def test_a_service_gets_what_a_function_gets_and_each_answer_gets_its_score(service):
    assert remote(service, concurrency=4).score_texts(TEXTS, ROWS) == SCORES
    assert sorted(len(body["prompts"]) for body in service.bodies) == [4, 5, 5, 5, 5]
    for body in service.bodies:
        assert set(body) == {"prompts", "completions", "subject"}
        numbers = [int(prompt.split()[1]) for prompt in body["prompts"]]
        assert body["completions"] == [TEXTS[n] for n in numbers]
        assert body["subject"] == [n % 3 for n in numbers]


def test_answers_to_messages_are_messages(service):
    messages = [{"role": "user", "content": "hi"}]
    remote(service).score_texts(["yes"], [{"prompt": messages}])
    assert service.bodies[0] == {"prompts": [messages], "completions": [[{"role": "assistant", "content": "yes"}]]}


def test_a_rollout_is_scored_and_silence_abstains(service):
    rollout, tokenizer = a_rollout(), tiny.tokenizer()
    service.function = lambda prompts, completions: [None if n % 2 else 1.5 for n, _ in enumerate(prompts)]
    scorer = remote(service, batch_size=99, abstain_value=None)
    scores = scorer.score(rollout, tokenizer)
    assert scores.dtype == torch.float32 and scores.shape == (len(rollout),)
    assert set(scores.nan_to_num(9.0).tolist()) == {1.5, 9.0}
    assert scorer.details_of(rollout)["requests"].tolist() == [1.0] * len(rollout)
    assert torch.equal(scorer.score(rollout, tokenizer).nan_to_num(9.0), scores.nan_to_num(9.0))
    assert len(service.bodies) == 1


WRONG = [b'{"scores": [1.0]}', b'{"scores": [NaN, 1, 1, 1, 1]}', b'{"scores": ["1", 1, 1, 1, 1]}', b'{"scores": 3}',
         b'{"scores": [true, 1, 1, 1, 1]}', b'{"scores": [1e999, 1, 1, 1, 1]}', b"[1, 1, 1, 1, 1]", b"<html>",
         b"[" * 10**5]  # fmt: skip


@pytest.mark.parametrize("fault", [429, 503, (429, {"Retry-After": "0"}), "closed", "slow", *WRONG], ids=repr)
def test_what_may_pass_is_tried_again_and_costs_no_score(service, fault):
    service.faults = [fault, fault]
    assert remote(service, timeout=0.3 if fault == "slow" else 5.0).score_texts(TEXTS, ROWS) == SCORES
    assert len(service.bodies) == 5 + 2


def test_a_service_that_is_away_for_a_while_costs_no_score(service):
    service.down_until = time.monotonic() + 0.6
    assert remote(service, pause=0.1, concurrency=3).score_texts(TEXTS, ROWS) == SCORES


def test_many_requests_are_under_way_and_no_more_than_allowed(service):
    service.seconds = 0.05
    rows, texts = [{"prompt": str(n)} for n in range(100)], ["x"] * 100
    begin = time.monotonic()
    assert remote(service, batch_size=1, concurrency=20).score_texts(texts, rows) == [-1.0] * 100
    assert time.monotonic() - begin < 100 * 0.05 / 2
    assert 10 < service.most <= 20


def test_a_rate_limit_is_kept_and_who_is_asked_to_wait_waits(service):
    begin = time.monotonic()
    remote(service, batch_size=4, concurrency=6, per_second=20).score_texts(TEXTS, ROWS)
    assert time.monotonic() - begin >= 5 / 20
    service.faults, service.seconds = [(429, {"Retry-After": "1"})], 0.05
    service.times.clear()
    remote(service, batch_size=1, concurrency=2).score_texts(TEXTS, ROWS)
    begin, *others = service.times
    assert sum(at < begin + 0.9 for at in others) <= 2  # those that were on the way


def test_a_score_that_came_is_kept_whatever_happens_to_others_and_asked_for_once(service, tmp_path):
    service.faults = [None, None, 401]
    with pytest.raises(RewardFunctionError, match=rf"refuses the request: HTTP 401.*key is that of {KEY}") as error:
        remote(service, concurrency=1, cache_dir=tmp_path).score_texts(TEXTS, ROWS)
    assert "14 of 24 answers have no score" in str(error.value) and len(service.bodies) == 3
    assert remote(service, cache_dir=tmp_path).score_texts(TEXTS, ROWS) == SCORES
    assert remote(service, cache_dir=tmp_path).score_texts(TEXTS, ROWS) == SCORES
    assert len(service.asked) - 5 == len(set(service.asked)) == 24  # the five that were refused
    assert remote(service, cache_dir=tmp_path).score_texts(["new"], ROWS[:1]) == [-3.0]


def test_the_same_answer_in_a_batch_is_asked_for_once_and_a_column_makes_it_another(service):
    rows = [{"prompt": "p"}, {"prompt": "p"}, {"prompt": "p", "reference": "r"}]
    scorer = remote(service, batch_size=1)
    assert scorer.score_texts(["x", "x", "x"], rows) == [-1.0] * 3
    assert scorer.score_texts(["x"], [{"reference": "r", "prompt": "p"}]) == [-1.0]  # in whatever order they stand
    assert len(service.bodies) == 2


@pytest.mark.parametrize(("on_error", "instead"), [("abstain", math.nan), (-9.0, -9.0)])
def test_answers_without_a_score_get_what_on_error_says(service, on_error, instead, caplog):
    rollout = a_rollout()
    service.faults = [503]
    scorer = remote(service, batch_size=1, concurrency=1, retries=0, on_error=on_error)
    scores = scorer.score(rollout, tiny.tokenizer())
    failed = scorer.details_of(rollout)["failed_answers"].bool()
    assert failed.any() and not failed.all()
    assert torch.equal(scores[failed].nan_to_num(7.0), torch.full_like(scores[failed], instead).nan_to_num(7.0))
    assert (scores[~failed] <= 0).all() and "HTTP 503" in caplog.text


def test_after_the_deadline_nothing_is_tried_again(service):
    service.down_until = time.monotonic() + 60
    begin = time.monotonic()
    with pytest.raises(RewardFunctionError, match=r"raise scorer\.deadline"):
        remote(service, pause=0.2, retries=50, deadline=0.5).score_texts(TEXTS, ROWS)
    assert time.monotonic() - begin < 3


def test_a_rate_that_is_too_slow_for_the_deadline_is_told(service):
    begin = time.monotonic()
    with pytest.raises(RewardFunctionError, match=r"its place in the row is \d+ s away.*raise scorer\.deadline"):
        remote(service, batch_size=1, per_second=0.01, deadline=0.3).score_texts(TEXTS, ROWS)
    assert time.monotonic() - begin < 3


def test_a_run_that_is_asked_to_stop_does_not_wait_for_the_service(service):
    service.seconds = 4.0
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    begin = time.monotonic()
    with signals.watched(tells=False), pytest.raises(signals.Stopped):
        timer.start()
        remote(service).score_texts(TEXTS, ROWS)
    assert time.monotonic() - begin < 2


def test_the_key_is_sent_and_stands_in_no_message_and_no_file(service, monkeypatch, tmp_path):
    monkeypatch.setenv(KEY, "sesame-1234")
    service.faults = [None, 403]
    with pytest.raises(RewardFunctionError) as error:
        remote(service, concurrency=1, cache_dir=tmp_path).score_texts(TEXTS, ROWS)
    assert service.headers[0]["Authorization"] == "Bearer sesame-1234"
    assert "sesame" not in str(error.value) + "".join(file.read_text() for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "batch_size=0"), ({"concurrency": 0}, "concurrency=0"), ({"deadline": 0}, "deadline=0"),
        ({"per_second": 0.0}, "per_second=0"), ({"on_error": "ignore"}, "on_error=ignore"), ({"retries": -1}, "ies=-1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(service, settings, says):
    with pytest.raises(ConfigError, match=says):
        RemoteScorer(service.address, **settings)


def test_what_cannot_be_sent_is_named(service):
    with pytest.raises(ConfigError, match="the address file:///etc/passwd must begin with http"):
        RemoteScorer("file:///etc/passwd")
    with pytest.raises(ConfigError, match="the column picture cannot be sent"):
        remote(service).score_texts(["x"], [{"prompt": "p", "picture": b"1"}])


def test_two_services_are_weighted(service):
    rollout = a_rollout()
    with reward_service(lambda prompts, **_: [10.0] * len(prompts)) as other:
        both = RewardSources({"short": Source(remote(service)), "good": Source(remote(other), weight=0.5)})
        scores = both.score(rollout, tiny.tokenizer())
    assert torch.allclose(scores, remote(service).score(rollout, tiny.tokenizer()) + 5.0)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
def test_a_run_that_lost_its_service_goes_on_and_ends_with_the_same_bits(tmp_path):
    """The service answers each question with another number each time: what was asked twice would be seen."""
    given, calls = {}, []

    def noisy(prompts, completions, **columns):
        calls.extend(zip(prompts, completions, strict=True))
        return [given.setdefault((p, c), (7 * len(given)) % 5 - 2.0) for p, c in zip(prompts, completions, strict=True)]

    words = [*small_run.prepare(tmp_path), "scorer=remote", "scorer.concurrency=1", "scorer.retries=0"]
    words = [word for word in words if not word.startswith(("scorer.function", "scorer.isolate", "scorer=function"))]
    with reward_service(noisy) as service:
        words += [f"scorer.url={service.address}", "checkpoint.every_n_steps=1"]
        whole = small_run.go(words, tmp_path / "whole", f"output_root={tmp_path / 'a'}")
        asked = len(calls)
        calls.clear()
        broken = [*words, f"output_root={tmp_path / 'b'}"]
        requests = len(service.bodies)
        service.faults = [None] * (requests // 2 + 1) + [500]
        with pytest.raises(RewardFunctionError, match="HTTP 500"):
            small_run.go(broken, tmp_path / "broken")
        assert small_run.go(broken, tmp_path / "broken", "resume=auto") == whole
    assert len(calls) == len(set(calls)) == asked
    assert compose(
        ["stage=ppo", "task=custom", "model.path=m", "data.prompts=p", "scorer=remote", "scorer.url=http://x/"]
    )
    assert brevity([""], ["x"]) == [-1.0]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://", "and a host"),
        ("http://[::1/score", "Invalid IPv6"),
        ("http://localhost:99999/score", "out of range"),
        ("http://local host/score", "holds a space"),
        ("http://localhost/score?of=ü", "ascii"),
        ("http://..a/score", "label"),
        ("http://ann:secret@localhost/score", f"set {KEY} instead"),
        ("http://localhost/score?api_key=secret", f"holds api_key=.*set {KEY} instead"),
    ],
)
def test_an_address_that_is_none_is_refused_before_it_is_asked(address, says):
    with pytest.raises(ConfigError, match=says) as refused:
        RemoteScorer(address)
    assert "secret" not in str(refused.value)


def test_a_redirection_is_not_followed_and_the_address_is_told(service):
    service.faults = [(302, {"Location": "http://elsewhere/score"})]
    with pytest.raises(RewardFunctionError, match=r"HTTP 302.*give the address itself, http://elsewhere/score"):
        remote(service).score_texts(TEXTS[:1], ROWS[:1])


def test_a_number_that_json_does_not_have_is_refused_before_it_is_sent(service):
    with pytest.raises(ConfigError, match="the column weight cannot be sent"):
        remote(service).score_texts(["a"], [{"prompt": "p", "weight": math.nan}])
    assert not service.bodies


def test_a_refusal_that_breaks_off_is_tried_again(service, monkeypatch):
    def broken(self, *given):
        raise ConnectionResetError("reset by peer")

    service.faults = [503]
    monkeypatch.setattr(urllib.error.HTTPError, "read", broken, raising=False)
    assert remote(service).score_texts(TEXTS[:2], ROWS[:2]) == SCORES[:2]
