"""Low-rank adapters: the base model is theirs to share, never to change, and without them it is back bit for bit."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import Pretrained, ScalarModel, frozen_copy
from rlhf_lightning.models.adapters import Lora, adapted_layers, merged, save_adapter
from rlhf_lightning.models.forward import packs_rows, token_scores
from rlhf_lightning.models.output import is_linear
from rlhf_lightning.models.packing import can_pack
from tests.support import tiny

peft = pytest.importorskip("peft")
# peft's own model asks transformers 5 in a way that it announces to change.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.tensor([[0, 0, 3, 4, 5, 6, 1], [0, 7, 8, 9, 10, 11, 12]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]]).bool()
SCORED = MASK & (torch.arange(7) > 2)


def adapted(lora=None, model=None, freeze_below=0, moved=True):
    """A policy whose adapters have already learned something (``moved``)."""
    model = model or tiny.policy(scale=0.3)
    (lora or Lora()).put_into(model, freeze_below)
    if moved:
        move(model)
    return model


def move(model):
    generator = torch.Generator().manual_seed(1)
    for layer in adapted_layers(model).values():
        weight = layer.lora_B["default"].weight
        weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


def scores(model):
    with torch.no_grad():
        return token_scores(model, IDS, MASK, SCORED).logprobs


def logits(model, ids=IDS[1:, 1:]):
    with torch.no_grad():
        return model(input_ids=ids).logits


def storages(model):
    return {p.untyped_storage().data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("chunk", [2, None])
def test_new_adapters_change_no_bit_and_leave_the_class_alone(chunk):
    base, model = tiny.policy(scale=0.3), adapted(moved=False)
    base.head_chunk = model.head_chunk = chunk
    assert type(model) is type(base) and is_linear(model)
    assert torch.equal(scores(model), scores(base))
    move(model)
    assert (scores(model) - scores(base)).abs().max() > 0.01


def test_only_adapters_learn_and_every_linear_layer_of_the_decoder_has_them():
    model = adapted()
    assert len(adapted_layers(model)) == 2 * 7 and not any("lm_head" in name for name in adapted_layers(model))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 7 and all(".lora_" in name for name in trained)
    token_scores(model, IDS, MASK, SCORED).logprobs.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == set(trained)


def test_targets_can_be_named_and_frozen_lower_layers_get_none():
    model = adapted(Lora(r=2, target_modules=["q_proj", "down_proj"]), tiny.policy(layers=3), freeze_below=2)
    assert set(adapted_layers(model)) == {"model.layers.2.self_attn.q_proj", "model.layers.2.mlp.down_proj"}
    with pytest.raises(ConfigError, match=r"no linear layer called query; it has down_proj, gate_proj, k_proj"):
        adapted(Lora(target_modules=["q_proj", "query"]))


def test_the_reference_is_the_base_with_no_weight_of_its_own():
    base, model = tiny.policy(scale=0.3), adapted()
    reference = frozen_copy(model)
    assert type(reference) is type(base) and not adapted_layers(reference)
    assert [name for name, _ in reference.named_parameters()] == [name for name, _ in base.named_parameters()]
    assert storages(reference) < storages(model)
    assert not any(p.requires_grad for p in reference.parameters())
    assert torch.equal(scores(reference), scores(base))
    assert sum(p.requires_grad for p in model.parameters()) == 2 * 2 * 7  # the copy has frozen nothing of the model
    assert model.training and (scores(model) - scores(base)).abs().max() > 0.01


def test_a_copied_critic_shares_the_weights_of_the_policy_and_has_adapters_of_its_own():
    base, policy = tiny.policy(scale=0.3), adapted()
    critic = ScalarModel.from_policy(policy)
    of_its_own = {n for n, p in critic.named_parameters() if p.untyped_storage().data_ptr() not in storages(policy)}
    assert of_its_own == {n for n, p in critic.named_parameters() if p.requires_grad}
    assert len(of_its_own) == 2 * 2 * 7 + 1 and "model.score.weight" in of_its_own
    torch.nn.init.normal_(critic.model.score.weight)
    plain = ScalarModel.from_policy(base)
    plain.model.score.weight.data.copy_(critic.model.score.weight)
    with torch.no_grad():
        assert torch.equal(critic(IDS, MASK), plain(IDS, MASK))


def test_packed_rows_and_bfloat16_go_together_with_adapters():
    model = adapted()
    model.pack_rows = can_pack(model)
    assert packs_rows(model)
    half = adapted(model=tiny.policy(scale=0.3).to(torch.bfloat16))
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in half.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert (scores(half) - scores(model)).abs().max() < 0.1


def test_merged_weights_compute_the_same_and_peft_reads_the_adapter(tmp_path):
    model = adapted(Lora(r=4, lora_alpha=10))
    model.save_pretrained(tmp_path, state_dict=merged(model, model.state_dict()))
    save_adapter(model, model.state_dict(), tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    layer = model.model.layers[1].mlp.up_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(plain.model.layers[1].mlp.up_proj.weight, layer.base_layer.weight + 10 / 4 * product)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in tiny.policy().named_parameters()]
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-5)
    read = peft.PeftModel.from_pretrained(tiny.policy(scale=0.3), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(read), logits(model), atol=1e-6, rtol=1e-6)


def test_an_adapter_of_a_reward_model_brings_its_head(tmp_path):
    tiny.policy(scale=0.3).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    recipe = Pretrained(str(tmp_path / "base"), lora=Lora(r=4))
    model = recipe.adapted(recipe.reward_model(init_head=True))
    move(model)
    save_adapter(model, model.state_dict(), tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    read = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(read), logits(model), atol=1e-6, rtol=1e-6)


def test_models_with_transposed_weights_merge_as_well(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=20, n_positions=16)).eval()
    adapted(model=model)
    model.save_pretrained(tmp_path, state_dict=merged(model, model.state_dict()))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-5)


def test_a_config_gives_a_mapping():
    assert Pretrained("x", lora={"r": 4, "target_modules": ["q_proj"]}).at("y").lora == Lora(
        4, target_modules=["q_proj"]
    )
    assert Pretrained("x").lora is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rank": 8}, r"model.lora=\{'rank': 8\}: .* keys r, lora_alpha, lora_dropout, target_modules"),
        (8, "model.lora=8: give null or a mapping"),
        ({"r": 0}, "model.lora.r=0: must be at least 1"),
        ({"lora_alpha": 0}, "model.lora.lora_alpha=0: must be above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0: must be at least 0 and below 1"),
        ({"target_modules": "q_proj"}, "target_modules='q_proj': give all-linear or a list"),
        ({"target_modules": []}, "give all-linear or a list"),
    ],
)
def test_what_makes_no_adapter_is_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        Pretrained("x", lora=given)


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"model.lora needs the library peft: pip install 'rlhf_lightning\[lora\]'"):
        Pretrained("x", lora={"r": 8})
    assert merged(tiny.policy(), {}) == {} and Pretrained("x").lora is None
