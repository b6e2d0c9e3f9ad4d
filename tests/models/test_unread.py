"""A model that is sharded first and read then is the model that is loaded."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
)

from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.models import Pretrained, ScalarModel, frozen_copy, unread
from rlhf_lightning.models.frozen import FrozenModels
from rlhf_lightning.models.unread import fill, unread_of, weights_later
from rlhf_lightning.private_api.transformers import changes_weights
from tests.support import tiny

VOCABULARY = {"vocab_size": 3 + len(tiny.WORDS), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, **VOCABULARY,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "llama tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gpt2": GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=64, **VOCABULARY),
    "gemma": GemmaConfig(**SIZES),
    "gemma3": Gemma3TextConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
}


def written(config, folder):
    """A folder with a random model in several files."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(copy.deepcopy(config)).save_pretrained(folder, max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def both(make):
    """A model loaded, and one built without weights; both draw the same random numbers, and as many."""
    torch.manual_seed(3)
    loaded, state = make(), torch.get_rng_state()
    torch.manual_seed(3)
    with weights_later():
        found = make()
    assert torch.equal(state, torch.get_rng_state())
    return loaded, found


def checkpoints(model):
    return [name for name, part in model.named_modules() if getattr(part, "gradient_checkpointing", False)]


def assert_same(found, expected):
    assert type(found) is type(expected) and found.config.to_dict() == expected.config.to_dict()
    for every in ("named_parameters", "named_buffers"):
        tensors, wanted = dict(getattr(found, every)()), dict(getattr(expected, every)())
        assert tensors.keys() == wanted.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]), name
            assert tensor.requires_grad == wanted[name].requires_grad
    for name in ("pack_rows", "head_chunk", "training"):
        assert getattr(found, name, None) == getattr(expected, name, None), name
    assert checkpoints(found) == checkpoints(expected)
    assert str(getattr(found, "generation_config", "")) == str(getattr(expected, "generation_config", ""))
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(found(input_ids=ids).logits, expected(input_ids=ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_of_a_run_is_what_loading_makes(tmp_path, family):
    source = Pretrained(written(FAMILIES[family], tmp_path), dtype="bfloat16" if family == "gemma" else "float32")
    loaded, policy = both(source.causal_lm)
    reads = family != "mixtral"  # whose experts stand one by one in files
    assert all(weight.is_meta for weight in policy.parameters()) == reads == (unread_of(policy) is not None)
    reference, critic = frozen_copy(policy), ScalarModel.from_policy(policy)
    for model in (policy, reference, critic):
        fill(model)
        assert unread_of(model) is None
    assert_same(critic.model, ScalarModel.from_policy(loaded).model)
    assert_same(reference, frozen_copy(loaded))
    assert_same(policy, loaded)
    loaded, reward = both(lambda: source.reward_model(init_head=True))
    fill(reward)
    assert_same(reward, loaded)


def test_a_reward_model_keeps_its_head_and_activations_can_be_checkpointed(tmp_path):
    policy = Pretrained(written(FAMILIES["llama"], tmp_path / "policy"))
    policy.reward_model(init_head=True).save_pretrained(tmp_path / "reward")
    tiny.tokenizer().save_pretrained(tmp_path / "reward")
    loaded, found = both(Pretrained(str(tmp_path / "reward"), activation_checkpointing=True).reward_model)
    fill(found)
    assert_same(found, loaded)
    assert checkpoints(found) and found.score.weight.norm() > 0


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"num_hidden_layers": 5}, {"intermediate_size": 64}])
def test_a_folder_that_is_not_the_model_of_its_config_is_refused_as_always(tmp_path, change):
    folder = written(FAMILIES["llama"], tmp_path)
    LlamaConfig(**SIZES | change, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    with pytest.raises(CheckpointError) as always:
        Pretrained(folder).causal_lm()
    with weights_later(), pytest.raises(CheckpointError) as later:
        Pretrained(folder).causal_lm()
    assert str(later.value) == str(always.value)


def test_a_frozen_model_is_known_by_its_numbers_whether_it_was_read_before_or_after(tmp_path):
    loaded, policy = both(Pretrained(written(FAMILIES["gpt2"], tmp_path)).causal_lm)
    known, found = FrozenModels(), FrozenModels()
    known.add("reference", loaded)
    found.add("reference", policy)
    fill(policy)
    assert found.fingerprints == known.fingerprints


def test_weights_that_are_computed_from_those_in_files_are_loaded_as_always(tmp_path, monkeypatch):
    with torch.device("meta"):
        llama, mixtral = (AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[n])) for n in ("llama", "mixtral"))
    assert changes_weights(mixtral) and not changes_weights(llama)
    monkeypatch.setattr(unread, "changes_weights", lambda model: True)
    loaded, found = both(Pretrained(written(FAMILIES["llama"], tmp_path)).causal_lm)
    assert unread_of(found) is None
    assert_same(found, loaded)
