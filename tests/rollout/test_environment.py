"""A response in turns: whose tokens are whose, where it ends, what is kept, and what an environment may do wrong."""

import pytest
import torch
from torch.testing import assert_close

from rlhf_lightning.errors import ConfigError, RewardFunctionError
from rlhf_lightning.rollout import HFGenerateEngine, LoopEngine, Sampling
from rlhf_lightning.rollout.environment import following
from rlhf_lightning.rollout.groups import replaced
from tests.support import tiny
from tests.support.episodes import REPLIES, Asks, Talk, dense_logprobs, engine, rollout, words

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def parts(found, row):
    """The response as (who, text) of each run of tokens."""
    runs = []
    for token, written, there in zip(found.response_ids[row], found.mask[row], found.attended[row], strict=True):
        if there:
            who = "policy" if written else "environment"
            if not runs or runs[-1][0] != who:
                runs.append((who, []))
            runs[-1][1].append(int(token))
    return [(who, words(ids)) for who, ids in runs]


@pytest.mark.parametrize("inner", [LoopEngine, HFGenerateEngine])
def test_turns_of_the_policy_and_texts_of_the_environment_alternate(inner):
    made = []

    class Kept(Talk):
        def __init__(self):
            super().__init__()
            made.append(self)

    found = rollout(engine(Kept, inner()))
    turns = set()
    for row, environment in enumerate(made):
        runs = parts(found, row)
        assert [text for who, text in runs if who == "environment"] == list(REPLIES[: len(environment.heard) - 1])
        written = [tiny.tokenizer().encode(text) for who, text in runs if who == "policy"]
        assert [tiny.tokenizer().decode(ids, skip_special_tokens=True) for ids in written] == environment.heard
        assert found.rows[row]["environment_reward"] == len(environment.heard)
        turns.add(len(environment.heard))
    assert len(made) == len(found) == 6 and len(turns) > 1  # ragged
    assert not (found.mask & found.context).any() and found.lengths.tolist() == found.mask.sum(1).tolist()
    assert (found.response_ids[~found.attended] == 0).all() and (found.weight_version == 7).all()
    assert found.attended.long().diff(dim=1).max() <= 0  # no hole


def test_kept_log_probabilities_are_those_of_the_whole_text_at_the_tokens_of_the_policy():
    found = rollout(engine())
    dense = dense_logprobs(tiny.policy(scale=0.1).eval(), found)
    assert found.context.any() and (found.rollout_logprobs[~found.mask] == 0).all()
    assert_close(found.rollout_logprobs[found.mask], dense[found.mask], atol=1e-4, rtol=1e-4)
    assert engine().is_exact and not engine(inner=LoopEngine(dtype="bfloat16")).is_exact
    assert rollout(engine(inner=HFGenerateEngine())).rollout_logprobs is None
    assert not engine(inner=HFGenerateEngine()).is_exact


def test_an_environment_that_says_nothing_leaves_the_rollout_of_the_engine():
    found, plain = rollout(engine(replies=())), rollout(LoopEngine())
    for name in ("prompt_ids", "response_ids", "mask", "finished", "rollout_logprobs"):
        assert torch.equal(getattr(found, name), getattr(plain, name)), name
    assert torch.equal(found.attended, plain.mask)


def test_a_response_is_finished_where_the_environment_and_the_last_turn_ended():
    found = rollout(engine(max_turns=2), repeats=100)
    outcomes = set()
    for row in range(len(found)):
        runs = parts(found, row)
        ended = "good" in runs[-1][1]  # the environment has more to say to anything else
        turn = runs[-1][1].endswith("<eos>")
        assert bool(found.finished[row]) == (ended and turn)
        assert sum(who == "policy" for who, _ in runs) <= 2 and runs[-1][0] == "policy"
        outcomes.add((ended, turn))
    assert len(outcomes) == 4


@pytest.mark.parametrize(("limit", "turns"), [(7, 1), (8, 2), (13, 2), (14, 3)])
def test_a_text_is_not_added_where_another_turn_would_not_fit(limit, turns):
    # 3 tokens a turn, replies of 2 and 3: another turn ends at token 3 + 2 + 3 = 8, the third at 8 + 3 + 3 = 14
    found = rollout(engine(max_tokens=limit), repeats=16)
    widths = {sum(who == "policy" for who, _ in parts(found, row)) for row in range(len(found))}
    full = [row for row in range(len(found)) if all("eos" not in text for _, text in parts(found, row))]
    assert found.response_ids.shape[1] <= limit and full and not found.finished[full].any()
    talked = [row for row in full if all("good" not in text for _, text in parts(found, row))]
    assert {sum(who == "policy" for who, _ in parts(found, row)) for row in talked} == {turns} and max(widths) >= turns


def test_a_response_ends_before_the_positions_of_the_model_do():
    replies = ["bad " * 20] * 9  # 64 positions: 3 + 3 + 20 + 3 + 20 + 3 = 52 hold two texts and no third
    found = rollout(engine(replies=replies, max_turns=9))
    assert found.context.sum(1).max() == 40 and found.prompt_ids.shape[1] + found.response_ids.shape[1] <= 64


def test_what_an_environment_adds_to_a_prompt_is_read_and_shown_and_not_added_twice():
    found = rollout(engine(Asks))
    prompts = [words(ids[mask]) for ids, mask in zip(found.prompt_ids, found.prompt_mask, strict=True)]
    assert prompts == ["the food was was <unk>"] * 3 + ["we left was <unk>"] * 3  # the tokenizer knows no "it"
    assert [row["prompt"] for row in found.rows] == ["the food was was it"] * 3 + ["we left was it"] * 3
    again = rollout(engine(Asks), found.asked)
    assert torch.equal(again.response_ids, found.response_ids) and again.rows == found.rows
    dense = dense_logprobs(tiny.policy(scale=0.1).eval(), found)
    assert_close(found.rollout_logprobs[found.mask], dense[found.mask], atol=1e-4, rtol=1e-4)


def test_a_conversation_goes_through_the_chat_template():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<user>", "<assistant>"])
    tokenizer.chat_template = CHAT
    prompt, eos, good = [{"role": "user", "content": "we left"}], tokenizer.eos_token_id, tokenizer.encode("good")[0]
    after_end = following(tokenizer, prompt, "very slow", eos)
    assert tokenizer.decode(after_end) == "<user> very slow <eos> <assistant>"
    assert following(tokenizer, prompt, "very slow", good) == [eos, *after_end]  # a truncated turn is closed
    talk = engine(Asks)
    talk.sync(tiny.policy(scale=0.1), [1], 0, 0)
    batch = tiny.prompts("we left")
    batch = batch.__class__(batch.input_ids, batch.attention_mask, ({"prompt": prompt},))
    policy = tiny.policy(scale=0.1)
    policy.resize_token_embeddings(len(tokenizer))
    talk.sync(policy, [1], 0, 0)
    found = talk.generate(batch, Sampling(3), tokenizer)
    assert tokenizer.decode(found.prompt_ids[0]) == "<user> we left was <unk> <eos> <assistant>"
    assert found.rows[0]["prompt"] == [{"role": "user", "content": "we left was it"}]
    assert prompt == [{"role": "user", "content": "we left"}] and found.asked.rows[0]["prompt"] is prompt


def test_a_resumed_engine_samples_the_same_turns():
    first = engine()
    rollout(first)
    state, batch = first.state_dict(), tiny.prompts("the food was", repeats=4)
    expected = first.generate(batch, Sampling(3), tiny.tokenizer())
    second = engine()
    second.sync(tiny.policy(scale=0.1), [1], 0, 7)
    second.seed(99)
    second.load_state_dict(state)
    found = second.generate(batch, Sampling(3), tiny.tokenizer())
    assert torch.equal(found.response_ids, expected.response_ids) and torch.equal(found.context, expected.context)
    assert not torch.equal(rollout(engine(), batch, seed=1).response_ids, rollout(engine(), batch).response_ids)


def test_rows_that_are_sampled_again_bring_prompt_text_and_reward_along():
    old, fresh = rollout(engine()), rollout(engine(Asks, replies=("slow " * 6,)), ("we left",), repeats=2, seed=5)
    out = replaced(old, torch.tensor([1, 4]), fresh, 0)
    for row in range(6):
        source, place = (fresh, [1, 4].index(row)) if row in (1, 4) else (old, row)
        for ids, mask in (("prompt_ids", "prompt_mask"), ("response_ids", "mask"), ("response_ids", "context")):
            want = getattr(source, ids)[place][getattr(source, mask)[place]]
            assert torch.equal(getattr(out, ids)[row][getattr(out, mask)[row]], want)
        assert out.rows[row] == source.rows[place]


def test_an_environment_that_raises_is_named_with_what_it_did_and_the_prompt():
    class Broken(Talk):
        def step(self, answer):
            return {}["key"]

    with pytest.raises(RewardFunctionError, match=r"environment Broken\.step raised KeyError: 'key'; prompt 'the food"):
        rollout(engine(Broken))
    with pytest.raises(RewardFunctionError, match=r"Talk\.reset raised TypeError"):
        rollout(engine(lambda: type("Talk", (), {"reset": lambda self: None})()))


def test_environments_need_a_tokenizer_and_room_for_a_turn():
    talk = engine()
    talk.sync(tiny.policy(), [1], 0, 0)
    with pytest.raises(ConfigError, match="environments read text"):
        talk.generate(tiny.prompts("good"), Sampling(2))
    with pytest.raises(ConfigError, match=r"rollout\.max_tokens=2: one turn may have sampling\.max_new_tokens=3"):
        rollout(engine(max_tokens=2))
    with pytest.raises(ConfigError, match=r"rollout\.max_turns=0"):
        engine(max_turns=0)
