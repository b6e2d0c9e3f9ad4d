"""Prompts read once and in packs, keys and values in spare room: the same answers for less work."""

from collections import defaultdict

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.forward import response_forward
from rlhf_lightning.rollout import LoopEngine, Sampling
from rlhf_lightning.rollout.cache import SPARE, RoomyLayer, empty_cache, is_plain
from tests.rollout.test_loop import PROMPTS, engine
from tests.support import tiny
from tests.support.plain import gather_logprobs

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"vocab_size": 17, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "tie_word_embeddings": False}


def mistral(window):
    config = MistralConfig(**SHAPE, **IDS, num_key_value_heads=2, max_position_embeddings=64, sliding_window=window)
    return MistralForCausalLM(config)


def mixed():
    types = ["full_attention", "sliding_attention"]
    config = Qwen2Config(**SHAPE, **IDS, num_key_value_heads=2, max_position_embeddings=64, layer_types=types)
    config.use_sliding_window, config.sliding_window = True, 4
    return Qwen2ForCausalLM(config)


def gpt2():
    return GPT2LMHeadModel(GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 5}, {"compact_below": 1.0}])
def test_shared_prompts_in_packs_give_the_answers_of_the_plain_path(options, repeats):
    model, sampling = tiny.policy(scale=0.3), Sampling(max_new_tokens=20)
    batch = tiny.prompts(*PROMPTS, "we", "the food was very kind and happy", repeats=repeats)
    plain = engine(model, share_prefill=False).generate(batch, sampling)
    shared = engine(model, **options).generate(batch, sampling)
    assert torch.equal(plain.mask, shared.mask) and torch.equal(plain.finished, shared.finished)
    assert torch.equal(plain.response_ids, shared.response_ids) and plain.rows == shared.rows
    torch.testing.assert_close(plain.rollout_logprobs, shared.rollout_logprobs, atol=1e-5, rtol=0)
    assert plain.lengths.unique().numel() > 2


@pytest.mark.parametrize(("share", "read"), [(False, 4 * 3 * 7), (True, 7 + 3 + 2 + 1)])
def test_a_group_reads_its_prompt_once_and_without_padding(share, read):
    model, seen = tiny.policy(), []
    made = engine(model, share_prefill=share)
    made.generate(tiny.prompts("good"), Sampling(max_new_tokens=1))  # the first time it is tried out
    handle = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    made.generate(tiny.prompts(*PROMPTS, repeats=3), Sampling(max_new_tokens=2))
    handle.remove()
    assert sum(rows * columns for rows, columns in seen[:-1]) == read  # the last is the one decoding step
    assert seen[-1][1] == 1


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("make", "plain"), [(lambda: mistral(None), True), (lambda: mistral(4), False), (mixed, False), (gpt2, True)]
)
def test_other_models_decode_what_the_teacher_forced_forward_says(make, plain, share):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=0.8)
    assert is_plain(empty_cache(model.config)) is plain
    batch, sampling = tiny.prompts(*PROMPTS, repeats=3), Sampling(max_new_tokens=16)
    rollout = engine(model, share_prefill=share).generate(batch, sampling)
    with torch.no_grad():
        out = response_forward(model, rollout.input_ids, rollout.attention_mask, rollout.mask.shape[1])
    expected = gather_logprobs(out.logits, rollout.response_ids)
    torch.testing.assert_close(rollout.rollout_logprobs[rollout.mask], expected[rollout.mask], atol=1e-5, rtol=1e-5)
    assert rollout.lengths.unique().numel() > 2


def test_spare_room_holds_what_the_plain_cache_holds_and_is_rarely_made():
    plain, roomy = DynamicCache(config=tiny.policy().config), empty_cache(tiny.policy().config)
    assert all(isinstance(layer, RoomyLayer) for layer in roomy.layers)
    places = defaultdict(int)
    for step in range(SPARE + 10):
        for layer in range(2):
            new = torch.randn(2, 2 if step > 20 else 4, 2, 5 if step == 0 else 1, 8)
            for mine, theirs in zip(roomy.update(*new, layer), plain.update(*new, layer), strict=True):
                assert torch.equal(mine, theirs)
        if step == 20:
            for cache in (plain, roomy):
                cache.reorder_cache(torch.tensor([1, 3]))
        places[roomy.layers[0].keys.data_ptr()] += 1
    assert roomy.get_seq_length() == plain.get_seq_length() == SPARE + 14
    assert len(places) == 2  # made with the prompts and when rows left, which gave new room


def test_a_full_store_is_enlarged():
    layer = RoomyLayer()
    layer.update(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3))
    keys, values = layer.update(torch.full((1, 1, SPARE + 1, 3), 2.0), torch.full((1, 1, SPARE + 1, 3), 3.0))
    assert keys[0, 0, :, 0].tolist() == [1.0] * 2 + [2.0] * (SPARE + 1)
    assert values[0, 0, :, 0].tolist() == [1.0] * 2 + [3.0] * (SPARE + 1)


def test_an_unknown_dtype_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"rollout.dtype='bfloat'.*float32, bfloat16, float16"):
        LoopEngine(dtype="bfloat")
