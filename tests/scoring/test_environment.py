"""What scorers and readers see of a response with an environment's text in it, and where their numbers go."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from rlhf_lightning.callbacks.samples import by_score
from rlhf_lightning.config.compose import compose, safe_instantiate
from rlhf_lightning.errors import RewardFunctionError
from rlhf_lightning.labelling import SamplingModule
from rlhf_lightning.loggers.records import markdown_table
from rlhf_lightning.models import Pretrained, ScalarModel
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.scoring import FunctionScorer, RewardModelScorer, RewardSources, completion_texts
from rlhf_lightning.scoring.references import PreferenceAsReward
from rlhf_lightning.scoring.transforms import LengthPenalty
from tests.support import episodes, tiny


@pytest.fixture
def rollout():
    found = episodes.rollout(episodes.engine())
    assert found.context.any(1).sum() > 2
    return found


def whole_texts(rollout):
    pairs = zip(rollout.response_ids, rollout.attended, strict=True)
    return [tiny.tokenizer().decode(ids[there], skip_special_tokens=True) for ids, there in pairs]


def test_scorers_and_readers_see_the_whole_text(rollout):
    seen = {}

    def spy(prompts, completions, completion_ids, **columns):
        seen.update(texts=completions, ids=completion_ids)
        return [0.0] * len(prompts)

    FunctionScorer(spy).score(rollout, tiny.tokenizer())
    assert seen["texts"] == completion_texts(rollout, tiny.tokenizer()) == whole_texts(rollout)
    assert [len(ids) for ids in seen["ids"]] == rollout.attended.sum(1).tolist()
    zeros = torch.zeros(rollout.mask.shape)
    experience = SimpleNamespace(
        rollout=rollout, mask=rollout.mask, logprobs=zeros, ref_logprobs=zeros, scores=torch.arange(6.0)
    )
    table = markdown_table(*by_score(experience, tiny.tokenizer(), samples=6, max_characters=600)).splitlines()[2:]
    for row, (line, text) in enumerate(zip(table, whole_texts(rollout), strict=True)):
        assert text in line and f"| {int(rollout.mask[row].sum())} |" in line


def test_numbers_per_token_count_at_tokens_of_the_policy_only(rollout):
    def per_token(prompts, completions, completion_ids, **columns):
        return [[float(place + 1) for place in range(len(ids))] for ids in completion_ids]

    scores = FunctionScorer(per_token).score(rollout, tiny.tokenizer())
    places = torch.arange(1.0, rollout.mask.shape[1] + 1).expand_as(scores)
    assert torch.equal(scores, torch.where(rollout.mask, places, 0))


def test_a_reward_model_reads_all_of_it_and_eos_behind_all_of_it(rollout, tmp_path):
    torch.manual_seed(0)
    model = ScalarModel.from_policy(tiny.policy())
    torch.nn.init.normal_(model.model.score.weight)
    model.model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    rollout = replace(rollout, finished=torch.arange(6) % 2 == 0)
    scores = RewardModelScorer(Pretrained(str(tmp_path)), normalise=False).score(rollout, tiny.tokenizer())
    for row in range(len(rollout)):
        ids = torch.cat([rollout.prompt_ids[row], rollout.response_ids[row]])
        ids = ids[torch.cat([rollout.prompt_mask[row], rollout.attended[row]])].tolist()
        ids = torch.tensor([ids if rollout.finished[row] and ids[-1] == 1 else [*ids, 1]])
        with torch.no_grad():
            assert_close(scores[row], model.eval().score(ids, torch.ones_like(ids).bool())[0], atol=1e-4, rtol=1e-4)


def test_the_reward_of_the_environment_is_a_source_like_any_other(rollout):
    config = compose(["stage=ppo", "rollout=environment", "rollout.environment._target_=a.B", "scorer=environment"])
    scorer = safe_instantiate(config["scorer"])
    rewards = [row["environment_reward"] for row in rollout.rows]
    assert scorer.score(rollout, tiny.tokenizer()).tolist() == rewards and len(set(rewards)) > 1
    length = FunctionScorer(lambda prompts, completions, **columns: [0.0] * len(prompts), name="none")
    both = RewardSources({"environment": scorer, "length": {"scorer": length, "transforms": [LengthPenalty(1.0)]}})
    written = rollout.mask.sum(1)
    assert torch.equal(both.score(rollout, tiny.tokenizer()), torch.tensor(rewards) - written)
    with pytest.raises(RewardFunctionError, match="use rollout=environment, and an environment that has reward"):
        scorer.score(episodes.rollout(episodes.LoopEngine()), tiny.tokenizer())


def test_reference_answers_have_no_text_from_elsewhere(rollout):
    rows = tuple(dict(row) | {"reference": ["very good", "good"]} for row in rollout.rows)
    given = replace(rollout, rows=rows)
    seen = []

    def judge(answers, tokenizer):
        seen.append((completion_texts(answers, tokenizer), answers.lengths.tolist()))
        return torch.zeros(len(answers))

    PreferenceAsReward(column="reference", holds="answers").references(given, tiny.tokenizer(), judge)
    assert seen == [(["very good", "good"] * 6, [3, 2] * 6)]


def test_records_hold_the_whole_text_and_the_numbers_of_the_policy(tmp_path):
    tiny.policy(scale=0.1).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    folder = Pretrained(str(tmp_path))
    module = SamplingModule(folder, reference=folder, engine=episodes.engine(), sampling=Sampling(3))
    module.engine.sync(module.frozen["policy"], [1], 0, 0)
    module.engine.seed(0)
    kept = []
    generate = module.engine.generate
    module.engine.generate = lambda *given: kept.append(generate(*given)) or kept[-1]
    module.predict_step(tiny.prompts("the food was", "we left", repeats=3), 0)
    assert [record["completion"] for record in module.records] == whole_texts(kept[0])
    dense = torch.where(kept[0].mask, episodes.dense_logprobs(tiny.policy(scale=0.1).eval(), kept[0]), 0)
    for record, logprobs, mask in zip(module.records, dense, kept[0].mask, strict=True):
        assert record["length"] == mask.sum() and record["kl"] == pytest.approx(0.0, abs=1e-6)
        assert record["nll_ref"] == pytest.approx(-logprobs.sum().item() / int(mask.sum()), rel=1e-3)
