"""Cases 43 to 50: tokenizers, models and generation that do not fit together, or do something unusual."""

import itertools

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data import PromptData
from rlhf_lightning.data.rows.turns import render
from rlhf_lightning.errors import CheckpointError, ConfigError, DataError
from rlhf_lightning.functional.sequences import right_pad
from rlhf_lightning.models import Pretrained, ScalarModel
from rlhf_lightning.models.loading import load_tokenizer
from rlhf_lightning.rollout import LoopEngine, Sampling
from rlhf_lightning.scoring import RewardModelScorer
from tests.support import phases, tiny

TEXTS = ["the food was very good .", "we left", "bad"]


def other_tokenizer(**tokens):
    """The words in another order, so that no id means the same."""
    vocab = {word: i for i, word in enumerate([*reversed(tiny.WORDS), "[end]", "[unk]"])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[end]", unk_token="[unk]", **tokens)


def reward_folder(folder, tokenizer):
    model = ScalarModel.from_policy(tiny.policy(seed=3)).model
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rollout(*texts, new=5):
    """Answers of a policy that ends some of them."""
    engine, policy = LoopEngine(), tiny.policy(scale=0.3)
    engine.sync(policy, (1,), 0, 0)
    engine.seed(0)
    return engine.generate(tiny.prompts(*texts), Sampling(max_new_tokens=new))


def test_case_43_the_reward_of_a_text_depends_on_no_padding(tmp_path):
    scorer = RewardModelScorer(Pretrained(str(reward_folder(tmp_path, tiny.tokenizer()))))
    tok, eos = tiny.tokenizer(), 1
    rows = [[*tok(text).input_ids, eos] for text in TEXTS]
    ids, mask = right_pad(rows, 0)
    with torch.no_grad():
        expected = torch.cat([scorer.model.score(torch.tensor([r]), torch.ones(1, len(r)).bool()) for r in rows])
        for pad, left, right in itertools.product((0, eos, 5), (0, 1, 7), (0, 3)):
            wide = torch.nn.functional.pad(ids.masked_fill(~mask, pad), (left, right), value=pad)
            real = torch.nn.functional.pad(mask, (left, right), value=False)
            torch.testing.assert_close(scorer.model.score(wide, real), expected, atol=1e-5, rtol=1e-5)
    assert len(expected.unique()) == 3


def test_case_43_a_tokenizer_without_a_pad_token_gets_eos_and_scores_the_same(tmp_path):
    bare = other_tokenizer()
    assert bare.pad_token_id is None
    padded = other_tokenizer(pad_token="[unk]")
    scores = []
    for name, tokenizer in (("bare", bare), ("padded", padded)):
        folder = reward_folder(tmp_path / name, tokenizer)
        assert load_tokenizer(folder).pad_token == {"bare": "[end]", "padded": "[unk]"}[name]
        scores.append(RewardModelScorer(Pretrained(str(folder))).score(rollout(*TEXTS), tiny.tokenizer()))
    assert scores[0].isfinite().all() and len(scores[0].unique()) == 3
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)


def test_case_44_a_reward_model_with_another_tokenizer_reads_the_text(tmp_path):
    scorer = RewardModelScorer(Pretrained(str(reward_folder(tmp_path, other_tokenizer()))))
    answers, own = rollout(*TEXTS), other_tokenizer()
    scores = scorer.score(answers, tiny.tokenizer())
    for i, prompt in enumerate(TEXTS):
        words = tiny.tokenizer().decode(answers.response_ids[i][answers.mask[i]], skip_special_tokens=True)
        ids = torch.tensor([[*own(f"{prompt} {words}").input_ids, own.eos_token_id]])
        with torch.no_grad():
            expected = scorer.model.score(ids, torch.ones_like(ids).bool())[0]
        torch.testing.assert_close(scores[i], expected, atol=1e-5, rtol=1e-5)


def test_case_45_token_ids_beyond_the_vocabulary_are_named_when_the_model_is_loaded(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"new{i}" for i in range(4)])
    tiny.policy().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    says = (
        r"the tokenizer has token ids up to 20, but the model has a vocabulary of 17; use the tokenizer of this model"
    )
    for load in (Pretrained(str(tmp_path)).causal_lm, lambda: Pretrained(str(tmp_path)).reward_model(init_head=True)):
        with pytest.raises(CheckpointError, match=says):
            load()


def test_case_46_a_language_model_is_no_reward_model_unless_it_is_asked_to_become_one(tmp_path):
    tiny.policy().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no score\.weight; this is a language model, not a reward model"):
        RewardModelScorer(Pretrained(str(tmp_path)))
    assert Pretrained(str(tmp_path)).reward_model(init_head=True).score.weight.std() > 0


class Always(LoopEngine):
    """Answers with one token only."""

    def __init__(self, token):
        super().__init__()
        self.token = token

    def sync(self, policy, *given):
        super().sync(policy, *given)
        head = self._policy.lm_head
        head.register_forward_hook(lambda _, inputs, logits: self.favoured(logits))

    def favoured(self, logits):
        favour = torch.zeros_like(logits)
        favour[..., self.token] = 100.0
        return logits + favour


def ppo(tmp_path, token, **settings):
    """Metrics and last experience of one rollout whose answers are this token only."""
    module = phases.ppo_module(micro_batch_size=None, num_minibatches=1, ppo_epochs=1, **settings)
    module.engine = Always(token)
    module, run = phases.ppo(phases.write(tmp_path), module, rollouts=1)
    assert phases.flat(module.policy).isfinite().all() and phases.flat(module.critic).isfinite().all()
    return {name: float(value) for name, value in run.callback_metrics.items()}, module.last_experience


pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


def test_case_47_an_answer_that_ends_at_once_has_a_score_and_a_finite_loss_and_is_counted(tmp_path):
    metrics, experience = ppo(tmp_path, 1)
    assert experience.mask.sum(1).tolist() == [1] * 8  # the end token, which was a choice
    assert experience.scores.tolist() == [0.0] * 8 and experience.rewards.isfinite().all()
    assert all(torch.tensor(value).isfinite() for value in metrics.values())
    assert (
        metrics["completions/mean_length"] == metrics["completions/max_length"] == metrics["completions/eos_rate"] == 1
    )


def test_case_48_an_answer_that_never_ends_is_cut_counted_and_costs_what_it_is_told_to(tmp_path):
    metrics, experience = ppo(tmp_path, 6, missing_eos_penalty=2.5)
    assert experience.mask.all() and not experience.rollout.finished.any()
    assert metrics["completions/clipped_ratio"] == 1 and metrics["completions/eos_rate"] == 0
    _, free = ppo(tmp_path, 6, missing_eos_penalty=0.0)
    cost = 2.5 * free.scores.std(correction=0)
    torch.testing.assert_close(free.rewards.sum(1) - experience.rewards.sum(1), cost.expand(8))


def test_case_49_messages_without_a_chat_template_name_the_tokenizer_and_the_way_out(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": [{"role": "user", "content": "the food"}]}\n' * 2)
    tokenizer = tiny.tokenizer()
    tokenizer.name_or_path = "my/tokenizer"
    data = PromptData(file, None, tokenizer, batch_size=2, validation_fraction=0.0)
    says = r"prompts\.jsonl:1: .*tokenizer 'my/tokenizer' has no chat template; take the tokenizer of an instruct model"
    with pytest.raises(DataError, match=says):
        data.setup("fit")
    with pytest.raises(DataError, match="has no chat template"):
        render(tokenizer, [{"role": "user", "content": "x"}])


def test_case_50_a_prompt_and_answer_beyond_the_context_are_refused_before_the_first_rollout(tmp_path):
    folder = phases.write(tmp_path)
    with (folder / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "' + "good " * 60 + '"}\n')  # 60 + 8 > 64, in a rollout that is far away
    module = phases.ppo_module()
    module.generate = lambda *given: pytest.fail("a rollout began")
    says = r"prompt of 60 tokens \+ sampling\.max_new_tokens=8 exceeds the model's 64 positions; shorten one of them"
    with pytest.raises(ConfigError, match=says):
        phases.ppo(folder, module, rollouts=1, batch=4)
