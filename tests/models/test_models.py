"""Loading, splitting and copying models: nothing random, shared by accident, or trained that should not be."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForSequenceClassification

from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.models import Pretrained, ScalarModel, frozen_copy
from rlhf_lightning.models.forward import contiguous_head, response_forward
from rlhf_lightning.models.packing import lower_states
from rlhf_lightning.models.trunk import decoder, freeze_layers, layers, plain_inputs, run_lower, run_upper
from tests.support import tiny
from tests.support.plain import gather_logprobs

IDS = torch.tensor([[0, 0, 3, 4, 5, 6, 1], [0, 7, 8, 9, 10, 11, 12]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]]).bool()


@pytest.fixture
def folder(tmp_path):
    tiny.policy().save_pretrained(tmp_path / "policy")
    tiny.tokenizer().save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_two_parts_of_a_decoder_make_the_whole(depth):
    model = tiny.policy(layers=4)
    with torch.no_grad():
        inputs = plain_inputs(IDS, MASK)
        whole = decoder(model)(**inputs).last_hidden_state
        parts = run_upper(model, depth, run_lower(model, depth, inputs), inputs)
    torch.testing.assert_close(whole[MASK], parts[MASK])


def test_freezing_leaves_the_upper_layers_and_the_head_to_train():
    model = tiny.policy(layers=4)
    freeze_layers(model, 3)
    trained = {name.split(".layers.")[-1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"3", "model", "lm_head"}  # `model` is the final norm
    assert not model.get_input_embeddings().weight.requires_grad
    with pytest.raises(ConfigError, match="freeze_below=4: the model has 4 layers; choose 1 to 3"):
        freeze_layers(tiny.policy(layers=4), 4)


def test_the_lower_layers_of_a_reward_model_can_be_frozen(folder):
    model = Pretrained(str(folder), freeze_below=1).reward_model(init_head=True)
    assert not any(p.requires_grad for p in layers(model)[0].parameters())
    assert all(p.requires_grad for p in (*layers(model)[1].parameters(), model.score.weight))


def test_an_architecture_that_cannot_be_split_is_refused():
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=20, n_positions=16))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel cannot be run in two parts"):
        freeze_layers(model, 1)


def test_response_logits_are_those_of_the_whole_forward():
    model = tiny.policy()
    with torch.no_grad():
        out = response_forward(model, IDS, MASK, 3, with_states=True)
        whole = model(IDS, attention_mask=MASK.long(), position_ids=(MASK.cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(out.logits, whole[:, -4:-1])
    torch.testing.assert_close(model.lm_head(out.states), out.logits)


def test_a_row_scores_the_same_alone_and_in_a_crowd_and_whatever_the_pad_id():
    model = tiny.policy()
    with torch.no_grad():
        crowd = gather_logprobs(response_forward(model, IDS, MASK, 3).logits, IDS[:, -3:])
        alone = gather_logprobs(response_forward(model, IDS[:1, 2:], MASK[:1, 2:], 3).logits, IDS[:1, -3:])
        other = response_forward(model, IDS.masked_fill(~MASK, 9), MASK, 3)
    torch.testing.assert_close(crowd[:1], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gather_logprobs(other.logits, IDS[:, -3:]), crowd, atol=1e-5, rtol=1e-5)


def test_the_score_is_read_at_the_last_real_token_for_any_padding():
    model = ScalarModel.from_policy(tiny.policy())
    torch.nn.init.normal_(model.model.score.weight)
    plain = torch.tensor([[3, 4, 5, 1]])
    with torch.no_grad():
        expected = model.score(plain, torch.ones_like(plain).bool())
        for pad in (0, 1, 7):  # 1 is also EOS
            right, left = torch.tensor([[3, 4, 5, 1, pad, pad]]), torch.tensor([[pad, pad, 3, 4, 5, 1]])
            torch.testing.assert_close(model.score(right, torch.tensor([[1, 1, 1, 1, 0, 0]]).bool()), expected)
            torch.testing.assert_close(model.score(left, torch.tensor([[0, 0, 1, 1, 1, 1]]).bool()), expected)


def test_a_critic_from_the_policy_has_its_trunk_and_a_zero_head():
    policy = tiny.policy()
    critic = ScalarModel.from_policy(policy)
    with torch.no_grad():
        assert critic(IDS, MASK).abs().max() == 0
        mine, theirs = (decoder(m)(**plain_inputs(IDS, MASK)).last_hidden_state for m in (critic.model, policy))
        torch.testing.assert_close(mine, theirs)
    assert not {p.data_ptr() for p in critic.parameters()} & {p.data_ptr() for p in policy.parameters()}


def test_a_critic_shares_frozen_layers_only_if_they_are_the_same():
    policy = tiny.policy(layers=4)
    freeze_layers(policy, 2)
    same, other = ScalarModel.from_policy(policy, 2), ScalarModel.from_policy(tiny.policy(seed=5, layers=4))
    other.freeze_below = 2
    other.share_lower(policy)
    assert same.freeze_below == 2 and layers(same.model)[1] is layers(policy)[1]
    assert other.freeze_below == 0 and layers(other.model)[1] is not layers(policy)[1]
    torch.nn.init.normal_(same.model.score.weight)
    with torch.no_grad():
        torch.testing.assert_close(same(IDS, MASK, lower_states(policy, 2, IDS, MASK))[MASK], same(IDS, MASK)[MASK])


def test_a_frozen_copy_shares_only_what_is_frozen():
    policy = tiny.policy(layers=4)
    freeze_layers(policy, 3)
    copied = frozen_copy(policy)
    for mine, theirs in zip(copied.parameters(), policy.parameters(), strict=True):
        assert (mine is theirs) is not theirs.requires_grad
    assert not any(p.requires_grad for p in copied.parameters()) and not copied.training


def test_loading_gives_train_mode_without_dropout_and_a_pad_token(tmp_path):
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=16, eos_token_id=1, bos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    recipe = Pretrained(str(tmp_path))
    model = recipe.causal_lm()
    assert model.training and all(m.p == 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    assert recipe.tokenizer().pad_token_id == recipe.tokenizer().eos_token_id == 1


def test_a_language_model_is_no_reward_model_unless_asked(folder):
    with pytest.raises(CheckpointError, match=r"no score\.weight; this is a language model"):
        Pretrained(str(folder)).reward_model()
    torch.manual_seed(0)
    heads = [Pretrained(str(folder)).reward_model(init_head=True).score.weight for _ in range(40)]
    weights = torch.cat(heads).detach()
    assert weights.std() == pytest.approx(33**-0.5, rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_is_no_policy_even_where_the_output_embedding_is_tied(tmp_path, tied):
    config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config.update({"tie_word_embeddings": tied, "num_labels": 1})
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="this is a reward model, not a language model"):
        Pretrained(str(tmp_path)).causal_lm()


def test_the_cache_is_not_switched_off_in_what_is_exported(folder):
    assert Pretrained(str(folder)).causal_lm().config.use_cache


@pytest.mark.parametrize("missing", ["nothing/here", "empty"])
def test_a_path_without_a_model_is_named(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    reason = "no model to load there" if missing == "empty" else "no such folder"
    with pytest.raises(CheckpointError, match=f"{missing}: {reason}"):
        Pretrained(str(tmp_path / missing)).causal_lm()


def test_remote_code_needs_a_pinned_revision_and_dtypes_are_checked():
    with pytest.raises(ConfigError, match="revision"):
        Pretrained("x", trust_remote_code=True)
    with pytest.raises(ConfigError, match="choose one of float32"):
        Pretrained("x", dtype="fp32")


def test_a_reward_model_can_keep_the_lowest_layers_only(folder, tmp_path):
    whole, cut = Pretrained(str(folder)), Pretrained(str(folder)).reward_model(init_head=True, num_layers=1)
    assert len(layers(cut)) == cut.config.num_hidden_layers == 1
    lowest, kept = layers(whole.causal_lm())[0].state_dict(), layers(cut)[0].state_dict()
    assert all(torch.equal(kept[name], lowest[name]) for name in lowest)
    cut.save_pretrained(tmp_path / "cut")
    tiny.tokenizer().save_pretrained(tmp_path / "cut")
    assert len(layers(Pretrained(str(tmp_path / "cut")).reward_model())) == 1
    with pytest.raises(ConfigError, match="num_layers=3: the model has 2 layers; choose 1 to 2"):
        whole.reward_model(init_head=True, num_layers=3)


def test_the_output_embedding_sees_contiguous_states_without_gradients():
    model, seen = tiny.policy(), []
    head = model.lm_head.forward
    model.lm_head.forward = lambda states: (seen.append(states.is_contiguous()), head(states))[1]
    with torch.no_grad():
        model(IDS, logits_to_keep=2)
        response_forward(model, IDS, MASK, 2)
        with contiguous_head(model):
            model(IDS, logits_to_keep=2)
    assert seen == [False, True, True]
    assert not model.lm_head._forward_pre_hooks  # nothing is left behind
