"""Scorers: TRL's function signature, scores that are checked, reward models with the same or another tokenizer."""

import asyncio
from dataclasses import replace

import pytest
import torch

from rlhf_lightning.errors import CheckpointError, ConfigError, RewardFunctionError
from rlhf_lightning.models import Pretrained, ScalarModel
from rlhf_lightning.rollout import LoopEngine, Sampling
from rlhf_lightning.scoring import FunctionScorer, RewardModelScorer, completion_texts
from rlhf_lightning.types import PromptBatch
from tests.support import tiny


@pytest.fixture
def rollout():
    engine = LoopEngine()
    engine.sync(tiny.policy(scale=0.3), (1,), 0, version=0)
    engine.seed(0)
    return engine.generate(tiny.prompts("the food was", "we left", repeats=3), Sampling(max_new_tokens=10))


def brevity(prompts, completions, **columns):
    """A reward function as TRL's documentation shows them."""
    return [-float(len(completion.split())) for completion in completions]


def test_a_function_in_trl_format_scores_the_text_without_special_tokens(rollout):
    scores = FunctionScorer(brevity).score(rollout, tiny.tokenizer())
    words = [sum(i > 2 for i in row[m].tolist()) for row, m in zip(rollout.response_ids, rollout.mask, strict=True)]
    assert scores.tolist() == [-float(n) for n in words]
    assert FunctionScorer(brevity).name == "brevity"


def test_other_columns_reach_the_function_as_lists(rollout):
    seen = {}

    def spy(prompts, completions, **columns):
        seen.update(columns, prompts=prompts)
        return [0.0] * len(prompts)

    rows = tuple({"prompt": "p", "answer": i} for i in range(len(rollout)))
    FunctionScorer(spy).score(rollout.__class__(**{**vars(rollout), "rows": rows}), tiny.tokenizer())
    assert seen["answer"] == list(range(6)) and seen["prompts"] == ["p"] * 6


def test_conversational_prompts_get_conversational_completions():
    def spy(prompts, completions, **columns):
        assert completions[0] == [{"role": "assistant", "content": "fine"}]
        return [1.0]

    messages = [{"role": "user", "content": "how was it?"}]
    assert FunctionScorer(spy).score_texts([messages], ["fine"], [{"prompt": messages}]) == [1.0]


def test_none_abstains_and_zero_is_a_score():
    def sometimes(prompts, completions, **columns):
        return [None, 0.0, 2]

    rows = [{"prompt": "p"}] * 3
    scorer = FunctionScorer(sometimes, abstain_value=-1.0)
    assert scorer.score_texts(["p"] * 3, ["a", "b", "c"], rows) == [-1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("result", "message"),
    [(None, "None for 2"), ([1.0], "1 values for 2"), ([1.0, float("nan")], "nan"), ([1.0, "good"], "'good'")],
)
def test_a_score_that_is_no_number_each_is_refused(result, message):
    scorer = FunctionScorer(lambda prompts, completions: result, name="mine")
    with pytest.raises(RewardFunctionError, match=f"mine returned .*{message}"):
        scorer.score_texts(["p", "p"], ["a", "b"], [{"prompt": "p"}] * 2)


def test_an_exception_names_the_function_and_shows_a_sample():
    def broken(prompts, completions, **columns):
        raise KeyError("answer")

    with pytest.raises(RewardFunctionError, match=r"broken raised KeyError.*'first'"):
        FunctionScorer(broken).score_texts(["p"], ["first"], [{"prompt": "p"}])


def test_a_path_that_leads_nowhere_is_a_config_error():
    with pytest.raises(ConfigError, match="my_project"):
        FunctionScorer("my_project.rewards.brevity")


@pytest.fixture
def reward_folder(tmp_path):
    model = ScalarModel.from_policy(tiny.policy(seed=3)).model
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "reward")
    tiny.tokenizer().save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


def test_a_reward_model_scores_at_the_end_token_even_of_truncated_answers(rollout, reward_folder):
    scorer = RewardModelScorer(Pretrained(str(reward_folder)))
    scores = scorer.score(rollout, tiny.tokenizer())
    assert rollout.finished.any() and not rollout.finished.all()
    for i in range(len(rollout)):
        ids = rollout.input_ids[i][rollout.attention_mask[i]][None]  # alone and without padding
        if not rollout.finished[i]:  # what the reward model learned from always ends
            ids = torch.cat([ids, torch.tensor([[1]])], dim=1)
        with torch.no_grad():
            expected = scorer.model(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
        torch.testing.assert_close(scores[i], expected, atol=1e-5, rtol=1e-5)
    scorer.mean, scorer.std = 0.5, 4.0
    torch.testing.assert_close(scorer.score(rollout, tiny.tokenizer()), (scores - 0.5) / 4)


def test_another_tokenizer_is_served_by_text(rollout, reward_folder):
    scorer = RewardModelScorer(Pretrained(str(reward_folder)))
    shifted = tiny.tokenizer()
    shifted.add_tokens(["extra"])  # another vocabulary: ids may not be passed on
    by_ids = scorer.score(rollout, tiny.tokenizer())
    by_text = RewardModelScorer(Pretrained(str(reward_folder))).score(rollout, shifted)
    special = (rollout.mask & (rollout.response_ids <= 2)).sum(1)  # special tokens have no text
    same = special == rollout.finished
    assert rollout.finished[same].any() and not rollout.finished[same].all()
    torch.testing.assert_close(by_text[same], by_ids[same], atol=1e-5, rtol=1e-5)
    prompts, texts = [row["prompt"] for row in rollout.rows], completion_texts(rollout, tiny.tokenizer())
    torch.testing.assert_close(torch.tensor(scorer.score_texts(prompts, texts, rollout.rows)), by_text)
    chat = RewardModelScorer(Pretrained(str(reward_folder)))
    chat.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    rows = tuple({"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rollout.rows)
    torch.testing.assert_close(chat.score(replace(rollout, rows=rows), shifted), by_text)
    chat.tokenizer.chat_template += "{{ eos_token }}  "  # the white space after an EOS is not scored
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    chatted = chat.score_texts([row["prompt"] for row in rows], messages, rows)
    torch.testing.assert_close(torch.tensor(chatted), by_text)


def test_a_prompt_batch_repeats_prompts_side_by_side():
    batch: PromptBatch = tiny.prompts("the food", "we").repeat_interleave(2)
    assert [row["prompt"] for row in batch.rows] == ["the food", "the food", "we", "we"]


@pytest.mark.parametrize("micro", [1, 4, 5, 6])
def test_scores_come_back_in_the_order_of_the_responses_whatever_is_scored_together(rollout, reward_folder, micro):
    alone = RewardModelScorer(Pretrained(str(reward_folder)), micro_batch_size=1)
    scorer = RewardModelScorer(Pretrained(str(reward_folder)), micro_batch_size=micro)
    widths = []
    scorer.model.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[1]))
    scores = scorer.score(rollout, tiny.tokenizer())
    expected = [alone.score(rollout.select(torch.tensor([i])), tiny.tokenizer()) for i in range(len(rollout))]
    assert len(scores.unique()) > 3 and not scores.is_inference()
    torch.testing.assert_close(scores, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert len(widths) == -(-6 // micro) and all(mask.any(0).all() for mask in widths)


def test_a_run_does_not_go_on_with_another_reward_model(reward_folder, tmp_path):
    scorer = RewardModelScorer(Pretrained(str(reward_folder)))
    RewardModelScorer(Pretrained(str(reward_folder))).load_state_dict(scorer.state_dict())
    ScalarModel.from_policy(tiny.policy(seed=9)).model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has other weights than when this checkpoint was written"):
        RewardModelScorer(Pretrained(str(tmp_path))).load_state_dict(scorer.state_dict())


async def waits(prompts, completions, **columns):
    await asyncio.sleep(0)
    if "raise" in completions:
        raise KeyError("odd")
    return [float(len(completion)) for completion in completions]


def waits_for_each(prompts, completions, **columns):
    async def one(completion):
        return float(len(completion))

    return [one(completion) if completion else None for completion in completions]


@pytest.mark.parametrize("function", [waits, waits_for_each])
def test_a_function_may_be_async(function):
    scorer = FunctionScorer(function)
    assert scorer.score_texts(["p"] * 2, ["ab", "abc"], [{}, {}]) == [2.0, 3.0]

    async def in_a_loop():
        return scorer.score_texts(["p"], ["ab"], [{}])

    assert asyncio.run(in_a_loop()) == [2.0]
    if function is waits:
        with pytest.raises(RewardFunctionError, match=r"raised KeyError: 'odd' \(test_scoring\.py:\d+\)"):
            scorer.score_texts(["p"], ["raise"], [{}])


def test_what_yields_asynchronously_is_refused_by_that_word():
    async def yields(prompts, completions):
        yield 1.0

    with pytest.raises(RewardFunctionError, match="async"):
        FunctionScorer(yields).score_texts(["p"], ["ab"], [{}])
