"""Answers from a vLLM server: the right rows with the right numbers, from the weights that were given."""

import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lightning.errors import ConfigError, RolloutError
from rlhf_lightning.functional.masking import spread
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.rollout import Sampling, ServerEngine
from rlhf_lightning.rollout.server import weights as weights_on_disk
from rlhf_lightning.rollout.server.answers import read, request
from rlhf_lightning.rollout.server.routes import VLLMServer
from rlhf_lightning.rollout.server.weights import WeightFolder
from tests.support import tiny
from tests.support.fake_vllm import fake_vllm

PROMPTS = ("the food was", "we left", "very slow service and bad food .", "good")
SAMPLING = Sampling(max_new_tokens=6, temperature=0.8)


@pytest.fixture
def server():
    with fake_vllm(tiny.policy(seed=9)) as fake:
        yield fake


def engine(*servers, folder, policy=None, seed=3, version=1, **options):
    made = ServerEngine([s.url for s in servers], folder=folder, **{"ram_disk": False, "retries": 2, **options})
    for one in made.servers.servers:
        one._asks.pause = 0.01
    made.seed(seed)
    if policy is not None:
        made.sync(policy, (1,), 0, version)
    return made


def same(one, other):
    return torch.equal(one.response_ids, other.response_ids) and torch.equal(one.mask, other.mask)


def test_answers_are_a_rollout_with_the_log_probabilities_of_the_policy(server, tmp_path):
    policy, prompts = tiny.policy(scale=0.3), tiny.prompts(*PROMPTS, repeats=3)
    found = engine(server, folder=tmp_path, policy=policy, version=7).generate(prompts, SAMPLING)
    scored = token_scores(policy, found.input_ids, found.attention_mask, found.sampled, temperature=0.8)
    expected = spread(scored.logprobs, found.mask)
    torch.testing.assert_close(found.rollout_logprobs, expected.detach(), atol=1e-5, rtol=1e-5)
    assert torch.equal(found.prompt_ids, prompts.input_ids) and found.rows == prompts.rows
    assert found.weight_version.tolist() == [7] * 12 and len({tuple(r) for r in found.response_ids.tolist()}) > 6
    last = found.response_ids.gather(1, found.lengths[:, None] - 1).squeeze(1)
    assert torch.equal(found.finished, last == 1) and 0 < found.finished.sum() < 12
    assert found.lengths[~found.finished].eq(6).all() and (found.response_ids[~found.mask] == 0).all()
    assert len({body["seed"] for body in server.asked}) == 12  # neighbours of a group too


def test_a_seed_repeats_and_its_state_goes_on_whatever_the_concurrency_and_the_order(server, tmp_path):
    policy, prompts = tiny.policy(scale=0.3), tiny.prompts(*PROMPTS, repeats=2)
    first = engine(server, folder=tmp_path, policy=policy, concurrency=1)
    one = first.generate(prompts, SAMPLING)
    state, two = first.state_dict(), first.generate(prompts, SAMPLING)
    assert server.most == 1 and not same(one, two)
    server.jitter = 0.05
    again = engine(server, folder=tmp_path, policy=policy, seed=99, concurrency=5)
    again.load_state_dict(state)
    assert same(again.generate(prompts, SAMPLING), two) and 1 < server.most <= 5
    again.seed(3)
    assert same(again.generate(prompts, SAMPLING), one)
    again.seed(4)
    assert not same(again.generate(prompts, SAMPLING), one)


def test_rows_are_dealt_out_in_turn_and_all_servers_have_the_weights(server, tmp_path):
    policy, prompts = tiny.policy(scale=0.3), tiny.prompts(*PROMPTS)
    alone = engine(server, folder=tmp_path, policy=policy).generate(prompts, SAMPLING)
    with fake_vllm(tiny.policy(seed=8)) as other:
        server.asked.clear()
        both = engine(server, other, folder=tmp_path, policy=policy).generate(prompts, SAMPLING)
        asked = [sorted(len(body["prompt"]) for body in s.asked) for s in (server, other)]
        second = engine(server, other, folder=tmp_path, policy=policy)
        second.servers.rank = 1  # another one, which goes on where the first ended
        server.asked.clear()
        second.generate(tiny.prompts("good", "we left", "the food was"), SAMPLING)
    assert same(alone, both) and asked == [[3, 7], [1, 2]]
    assert [len(body["prompt"]) for body in server.asked] == [2]


def test_weights_that_are_there_are_not_sent_again_and_new_ones_are(server, tmp_path):
    policy, prompts = tiny.policy(scale=0.3), tiny.prompts(*PROMPTS)
    made = engine(server, folder=tmp_path, policy=policy)
    before, sent = made.generate(prompts, SAMPLING), len(server.paths)
    made.sync(policy, (1,), 0, 1)
    assert len(server.paths) == sent
    with torch.no_grad():
        policy.lm_head.weight.mul_(3)
    made.sync(policy, (1,), 0, 2)
    made.seed(3)
    after = made.generate(prompts, SAMPLING)
    assert not torch.equal(before.rollout_logprobs, after.rollout_logprobs) and after.weight_version[0] == 2
    assert torch.equal(server.base.lm_head.weight, policy.lm_head.weight)
    made.sync(tiny.policy(seed=5), (1,), 0, 2)  # another policy with as many steps
    assert torch.equal(server.base.lm_head.weight, tiny.policy(seed=5).lm_head.weight)
    assert server.paths.count("/init_weight_transfer_engine") == 1 and server.paths.count("/update_weights") == 3
    assert len(list((tmp_path / "weights").iterdir())) == 2
    made.close()
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weights", ["files", "reload"])
def test_a_server_gets_all_weights_by_the_names_of_the_model(tied, weights, tmp_path):
    def model(seed):
        made = tiny.adapted(tiny.policy(seed))
        if tied:
            made.config.tie_word_embeddings = True
            made.lm_head.weight = made.model.embed_tokens.weight
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if "lora_B" in name:
                    weight.normal_()
        return made

    plain = tiny.policy(seed=9)
    if tied:
        plain.config.tie_word_embeddings = True
        plain.tie_weights()
    policy = model(0)
    with fake_vllm(plain) as server:
        made = engine(server, folder=tmp_path, policy=policy, weights=weights)
        ids = torch.tensor([[3, 4, 5, 6]])
        torch.testing.assert_close(server.base(ids).logits, policy.eval()(ids).logits, atol=1e-4, rtol=1e-4)
        assert made.generate(tiny.prompts("we left"), SAMPLING).rollout_logprobs is not None
        files = list((tmp_path / "weights").glob("*/*.safetensors"))
        assert len(files) == 4  # what a layer has lies in a file of its own
        names = {name for file in files for name in load_file(file)}
        assert names == {name for name, _ in tiny.policy().named_parameters()} - ({"lm_head.weight"} if tied else set())


def test_adapters_alone_are_sent_and_named_by_the_requests(server, tmp_path):
    policy = tiny.adapted(tiny.policy(seed=9))  # of the base that the server has
    prompts, ids = tiny.prompts(*PROMPTS), torch.tensor([[3, 4, 5, 6]])
    made = engine(server, folder=tmp_path, policy=policy, weights="lora")
    for version in (2, 3):
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                if "lora_B" in name:
                    weight.normal_()
        made.sync(policy, (1,), 0, version)
        made.generate(prompts, SAMPLING)
        torch.testing.assert_close(server.model(ids).logits, policy.eval()(ids).logits, atol=1e-4, rtol=1e-4)
    assert {body["model"] for body in server.asked} == {"policy-adapter"}
    assert not list((tmp_path / "weights").glob("*/model*"))
    with pytest.raises(ConfigError, match=r"weights=lora: the policy has no adapters; set model.lora"):
        made.sync(tiny.policy(), (1,), 0, 4)


def test_answers_end_at_any_eos_token_or_stop_string_and_nowhere_else(server, tmp_path):
    made = engine(server, folder=tmp_path)
    policy, tokenizer = tiny.policy(scale=0.1), tiny.tokenizer()
    made.sync(policy, (1, 4, 9), 0, 1)
    prompts = tiny.prompts(*PROMPTS, repeats=12)
    found = made.generate(prompts, replace(SAMPLING, stop=("good", "very bad")), tokenizer)
    ends = {1, 4, 9, 6}
    reasons = set()
    for ids, mask, finished in zip(found.response_ids, found.mask, found.finished, strict=True):
        tokens = ids[mask].tolist()
        assert not ends & set(tokens[:-1])
        stops = tokens[-1] in ends or tokens[-2:] == [8, 7]
        assert finished == stops and (stops or len(tokens) == 6)
        reasons.add(tokens[-1] if stops else None)
    assert reasons >= {1, 4, 9, 6, None}
    with pytest.raises(ConfigError, match=r"sampling.stop needs the tokenizer"):
        made.generate(prompts, replace(SAMPLING, stop=("good",)))


@pytest.mark.parametrize("fault", [429, 503, 500, "closed", "garbage"])
def test_what_passes_by_is_asked_again_and_changes_no_answer(fault, server, tmp_path):
    prompts = tiny.prompts(*PROMPTS)
    made = engine(server, folder=tmp_path, policy=tiny.policy(scale=0.3))
    whole = made.generate(prompts, SAMPLING)
    made.seed(3)
    server.faults[:] = [fault, fault]
    assert same(made.generate(prompts, SAMPLING), whole)


def of_another(found):
    found["id"] = "cmpl-rl-0000000000000000"


def other_prompt(found):
    found["choices"][0]["prompt_token_ids"] = [3, 3, 3]


def duplicated(found):
    found["choices"] *= 2


def cut(found):
    found["choices"][0]["token_ids"] = found["choices"][0]["token_ids"][:-1]


def cut_with_its_numbers(found):
    cut(found)
    found["choices"][0]["logprobs"]["token_logprobs"].pop()


def goes_on(found):
    found["choices"][0]["token_ids"][0] = 1


def too_long(found):
    found["choices"][0]["token_ids"] = [5] * 9
    found["choices"][0]["logprobs"]["token_logprobs"] = [-1.0] * 9


def not_a_number(found):
    found["choices"][0]["logprobs"]["token_logprobs"][0] = float("nan")


def infinite(found):
    found["choices"][0]["logprobs"]["token_logprobs"][0] = float("-inf")


def positive(found):
    found["choices"][0]["logprobs"]["token_logprobs"][0] = 0.5


def without(found):
    found["choices"][0]["logprobs"] = None


def aborted(found):
    found["choices"][0]["finish_reason"] = "abort"


def empty(found):
    found["choices"][0]["token_ids"] = found["choices"][0]["logprobs"]["token_logprobs"] = []


WRONG = {
    of_another: "another request", other_prompt: "another prompt", duplicated: "without one choice",
    cut: "as many log-prob", cut_with_its_numbers: "said to", goes_on: "goes on after", too_long: "9 tokens where 6",
    not_a_number: "no finite",
    infinite: "no finite", positive: "no finite", without: "without one choice", aborted: "'abort'",
    empty: "without token ids",
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_answer_is_asked_for_again_and_if_it_stays_wrong_the_run_ends(wrong, server, tmp_path):
    prompts = tiny.prompts(*PROMPTS)
    made = engine(server, folder=tmp_path, policy=tiny.policy(scale=0.3), concurrency=2)
    whole = made.generate(prompts, SAMPLING)
    made.seed(3)
    server.faults[:] = [wrong]
    assert same(made.generate(prompts, SAMPLING), whole)
    server.each = wrong
    with pytest.raises(
        RolloutError, match=rf"rollout: http.*/v1/completions gave no answer after 3 tries: .*{WRONG[wrong]}"
    ):
        made.generate(prompts, SAMPLING)


def test_no_answer_in_time_ends_the_run_in_time(server, tmp_path):
    made = engine(server, folder=tmp_path, policy=tiny.policy(), timeout=0.3, deadline=0.5)
    server.broken["/v1/completions"], server.slow_seconds = "slow", 3.0
    start = time.monotonic()
    with pytest.raises(RolloutError, match=r"gave no answer .*timed out"):
        made.generate(tiny.prompts(*PROMPTS), SAMPLING)
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    ("ids", "reason", "stop", "says"),
    [
        ([5, 6, 7], "length", None, None),
        ([5, 1], "stop", 1, None),
        ([5, 6], "stop", "x", None),
        ([5, 6], "length", None, "truncated after 2 of 3"),
        ([5, 6, 1], "length", None, "truncated after 3 of 3"),
        ([5, 6], "stop", None, "said to have stopped"),
        ([5, 6], "stop", "y", "said to have stopped"),
        ([5, 1, 1], "stop", 1, "goes on after"),
        ([5, -1], "stop", "x", "without token ids"),
    ],
)
def test_an_answer_ends_where_it_has_to(ids, reason, stop, says):
    asked = request([3, 4], Sampling(max_new_tokens=3, stop=("x",)), (1,), 17)
    choice = {"prompt_token_ids": [3, 4], "token_ids": ids, "finish_reason": reason, "stop_reason": stop}
    choice["logprobs"] = {"token_logprobs": [-1] * len(ids)}
    answer = {"id": f"cmpl-{asked['request_id']}", "choices": [choice]}
    if says is None:
        assert read(answer, asked) == (ids, [-1.0] * len(ids), reason == "stop")
        return
    with pytest.raises(ValueError, match=says):
        read(answer, asked)


STEPS = (
    "/pause", "/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update",
    "/weight_info", "/resume",
)  # fmt: skip


@pytest.mark.parametrize("path", STEPS)
@pytest.mark.parametrize("fault", [404, 500, "closed", "slow"])
def test_a_server_that_fails_in_an_update_ends_the_run_and_is_named_with_the_step(path, fault, server, tmp_path):
    server.broken[path], server.slow_seconds = fault, 1.0
    made = engine(server, folder=tmp_path, deadline=0.3 if fault == "slow" else 5.0)
    start = time.monotonic()
    with pytest.raises(RolloutError, match=rf"{server.url}{path}.*serve FOLDER --training|deadline"):
        made.sync(tiny.policy(), (1,), 0, 1)
    assert time.monotonic() - start < 3.0
    with pytest.raises(RuntimeError, match=r"before sync"):
        made.generate(tiny.prompts("good"), SAMPLING)


def test_after_an_update_that_failed_nothing_is_sampled_from_the_weights_before(server, tmp_path):
    policy = tiny.policy()
    made = engine(server, folder=tmp_path, policy=policy, timeout=0.5, deadline=2.0)
    server.broken["/update_weights"] = 500
    with pytest.raises(RolloutError):
        made.sync(policy, (1,), 0, 2)
    with pytest.raises(RuntimeError, match=r"before sync"):
        made.generate(tiny.prompts("good"), SAMPLING)


def test_updates_wait_for_all_answers(server, tmp_path):
    engine(server, folder=tmp_path, policy=tiny.policy())
    assert server.queries["/pause"] == "mode=wait"


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for_beyond_the_deadline(tmp_path):
    def drip():
        with suppress(OSError), listening.accept()[0] as connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        client = VLLMServer(f"http://127.0.0.1:{listening.getsockname()[1]}", 0.3, 0, 0.3)
        start = time.monotonic()
        with pytest.raises(RolloutError, match=r"timed out while the answer was read"):
            client.version(time.monotonic() + 0.3)
        assert time.monotonic() - start < 1.5
        thread.join()


def test_a_server_that_says_another_version_ends_the_run_at_once_or_when_it_is_looked_at(server, tmp_path):
    server.says_version = "4"
    with pytest.raises(RolloutError, match=r"says that it has the weights '4', and it was given '1-"):
        engine(server, folder=tmp_path, policy=tiny.policy())
    server.says_version = None
    made = engine(server, folder=tmp_path, policy=tiny.policy(), verify_every_n=2)
    made.generate(tiny.prompts("good"), SAMPLING)
    server.version = "default"  # it was started again
    made.generate(tiny.prompts("good"), SAMPLING)
    with pytest.raises(RolloutError, match=r"'default'.*started again"):
        made.generate(tiny.prompts("good"), SAMPLING)


def test_a_file_that_changed_on_its_way_is_not_loaded(server, tmp_path, monkeypatch):
    made = engine(server, folder=tmp_path)
    route, before = server.route, server.base.lm_head.weight.clone()

    def damaged(path, body):
        if path == "/update_weights":
            with open(body["update_info"]["files"][0]["path"], "r+b") as file:
                file.seek(-1, 2)
                file.write(b"x")
        return route(path, body)

    monkeypatch.setattr(server, "route", damaged)
    with pytest.raises(RolloutError, match=r"update_weights gave no answer .*SHA-256 is .* half of the new weights"):
        made.sync(tiny.policy(), (1,), 0, 1)
    assert torch.equal(server.base.lm_head.weight, before)


@pytest.mark.parametrize("given", [{}, {"urls": ["http://127.0.0.1:1"], "start": True}, {"urls": "http://127.0.0.1:1"}])
def test_servers_that_run_or_one_to_start_have_to_be_given(given):
    with pytest.raises(ConfigError, match=r"rollout.urls=.*rollout.start=true for one of the run's own"):
        ServerEngine(**given)


def test_weights_lie_in_the_ram_disk_where_it_has_room_for_nobody_else_and_not_longer_than_the_run(
    tmp_path, monkeypatch
):
    disk = tmp_path / "shm"
    disk.mkdir()
    monkeypatch.setattr(weights_on_disk, "RAM_DISK", disk)
    assert WeightFolder(tmp_path / "run", True, 1 << 60).path == tmp_path / "run" / "weights"
    assert WeightFolder(tmp_path / "run", False, 1).path == tmp_path / "run" / "weights"
    made = WeightFolder(tmp_path / "run", True, 1)
    assert made.path.parent == disk and made.path.stat().st_mode & 0o777 == 0o700
    (made.new(1) / "left").touch()
    again = WeightFolder(tmp_path / "run", True, 1)  # the first was killed
    assert again.path == made.path != WeightFolder(tmp_path / "other", True, 1).path
    assert not list(again.path.iterdir())
    made.remove.detach()
    path, again = again.path, None
    assert not path.exists()
    path.symlink_to(tmp_path)
    assert not WeightFolder(tmp_path / "run", True, 1).path.is_symlink() and tmp_path.exists()
