"""The formulas of memory against bytes that are counted."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlhf_lightning.models.footprint import Setup, activations, on_device, on_host, shape_of, stored
from rlhf_lightning.models.quantized import quantize
from rlhf_lightning.models.trunk import checkpoint_activations
from rlhf_lightning.rollout import LoopEngine, Sampling
from tests.support import tiny

SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 8,
         "num_key_value_heads": 2}  # fmt: skip
ALONE = Setup(mixed=False, critic="none", reference=False, reward_bytes=0, tokens=80, sampled=0)


def model(layers=3, kind=LlamaForCausalLM, config=LlamaConfig, **more):
    torch.manual_seed(0)
    return kind(config(num_hidden_layers=layers, **SIZES, **more))


def kept(policy, ids):
    """Bytes that a forward of the layers keeps for the backward, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
    storages = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = policy.model(ids, use_cache=False).last_hidden_state
    assert states.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "config"), [(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)])
def test_activations_are_those_that_a_forward_keeps(kind, config, dtype):
    ids, setup = torch.zeros(2, 40, dtype=torch.long), Setup(mixed=dtype == torch.bfloat16, tokens=80)
    found = [kept(model(layers, kind, config).to(dtype), ids) for layers in (2, 6)]
    shapes = [shape_of(model(layers, kind, config).config) for layers in (2, 6)]
    expected = [activations(shape, setup) for shape in shapes]
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], rel=0.02)
    assert found[1] == pytest.approx(expected[1], rel=0.1)


def test_a_checkpointed_layer_keeps_its_input():
    ids, policies = torch.zeros(2, 40, dtype=torch.long), [model(layers) for layers in (2, 6)]
    for policy in policies:
        checkpoint_activations(policy)
        policy.train()
    setup = Setup(mixed=False, tokens=80, checkpointed=1.0)
    expected = [activations(shape_of(policy.config), setup) for policy in policies]
    found = [kept(policy, ids) for policy in policies]
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], rel=0.1)


def test_weights_gradients_and_adam_are_counted():
    policy = model(tie_word_embeddings=False)
    optimizer = torch.optim.AdamW(policy.parameters())
    policy(torch.zeros(2, 40, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    shape = shape_of(policy.config)
    states = [v for state in optimizer.state.values() for v in state.values() if v.dim()]
    held = [t for w in policy.parameters() for t in (w, w.grad)] + states
    expected = on_device(shape, ALONE)["learn"] - activations(shape, ALONE) - 3 * 4 * 512 * 64
    assert expected == sum(t.nbytes for t in held) == 16 * shape.parameters
    copied = replace(ALONE, asynchronous=True)
    assert on_host(shape, copied)["save"] == on_host(shape, copied)["learn"] == 12 * shape.parameters
    assert on_host(shape, replace(copied, ranks=4, sharded=True))["save"] == 3 * shape.parameters
    assert on_host(shape, ALONE)["save"] == max(w.nbytes for w in policy.parameters())
    sharded = on_device(shape, Setup(4, True, critic="none", reference=False, reward_bytes=0, tokens=80, sampled=0))
    assert sharded["load"] == on_device(shape, ALONE)["load"] / 4


def test_what_four_bits_keep_is_counted():
    policy = model(4)
    quantize(policy)
    held, shape = sum(w.nbytes for w in policy.parameters()), shape_of(policy.config)
    assert held == pytest.approx(stored(shape, 4, Setup(four_bits=True)), rel=0.05)  # norms are in float32
    assert stored(shape, 2, Setup()) == 2 * shape.parameters and stored(shape, 0, Setup(four_bits=True)) == 0


def test_tied_tables_are_counted_once():
    tied, free = (shape_of(model(tie_word_embeddings=tie).config) for tie in (True, False))
    assert (tied.tables, free.tables) == (64 * 64, 2 * 64 * 64)
    assert free.parameters - tied.parameters == 64 * 64 and tied.layer == free.layer
    assert free.parameters == sum(w.numel() for w in model(tie_word_embeddings=False).parameters())


def test_keys_and_values_are_those_of_the_cache(monkeypatch):
    policy, caches = tiny.policy(positions=1024), []
    prefill = LoopEngine._prefill

    def seen(self, *given):
        logits, cache = prefill(self, *given)
        caches.append(cache)
        return logits, cache

    monkeypatch.setattr(LoopEngine, "_prefill", seen)
    engine = LoopEngine()
    engine.sync(policy, (), 0, version=0)
    rollout = engine.generate(tiny.prompts("the food was", "we left"), Sampling(max_new_tokens=250))
    held = sum(t.nbytes for layer in caches[-1].layers for t in (layer.keys, layer.values))
    width = caches[-1].layers[0].keys.shape[2]
    shape = shape_of(policy.config)
    with_cache, without = (on_device(shape, Setup(mixed=False, sampled=n, context=width)) for n in (len(rollout), 0))
    assert with_cache["generate"] - without["generate"] - 2 * 4 * len(rollout) * shape.vocabulary == held


def test_what_saves_memory_saves_it():
    shape = shape_of(LlamaConfig(num_hidden_layers=8, **SIZES))
    plain = Setup(8, tokens=2000)
    assert max(on_device(shape, Setup(8, True, tokens=2000)).values()) < max(on_device(shape, plain).values())
    for more in ({"offload": True}, {"checkpointed": 1.0}, {"adapters": 4, "reference": False}, {"critic": "none"}):
        less = on_device(shape, Setup(8, tokens=2000, **more))
        assert less["learn"] <= on_device(shape, plain)["learn"], more
        assert more == {"critic": "none"} or less["learn"] < on_device(shape, plain)["learn"], more
    assert on_host(shape, Setup(8, True))["load"] < on_host(shape, plain)["load"]


def test_counting_takes_no_memory():
    large = LlamaConfig(num_hidden_layers=1, hidden_size=2**20, intermediate_size=8, vocab_size=2**24)
    assert shape_of(large).parameters > 2**44  # numbers of one table: more than any machine has
