"""Scores of tokens without logits of all positions: the same numbers and gradients, whatever the architecture."""

import logging

import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import Pretrained
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.packing import lower_states
from rlhf_lightning.models.trunk import freeze_layers
from tests.functional.test_linear_logprobs import Largest
from tests.support import tiny

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
MODELS = {
    "untied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
}
IDS = torch.tensor([[0, 0, 3, 4, 5, 6, 1], [7, 8, 9, 10, 11, 12, 0], [2, 3, 2, 9, 5, 7, 1]])
REAL = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]]).bool()
MASKS = {
    "answers": REAL & (torch.arange(7) >= 4),
    "anywhere": torch.tensor([[0, 0, 0, 1, 0, 0, 1], [1, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0]]).bool(),
    "one token": torch.zeros(3, 7).bool().index_put((torch.tensor(1), torch.tensor(3)), torch.tensor(True)),
    "nothing": torch.zeros(3, 7).bool(),
}


def model(name="untied"):
    torch.manual_seed(0)
    made = MODELS[name]().eval()
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(20)  # logits that a cap bends
    made.config.use_cache = False
    return made


def scored(policy, chunk, mask, **options):
    """The scores, and the gradient of a sum that looks at all of them."""
    policy.head_chunk = chunk
    policy.zero_grad()
    out = token_scores(policy, IDS, REAL, mask, **options)
    loss = (out.logprobs * torch.linspace(0.5, 2, len(out.logprobs))).sum()
    (loss + out.entropy.sin().sum() if options.get("entropy_grad") else loss).backward()
    grads = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    return out, torch.cat(grads)


def assert_same(policy, mask, **options):
    (off, wanted), (on, got) = (scored(policy, chunk, mask, **options) for chunk in (None, 2))
    assert got.shape == wanted.shape
    assert (got - wanted).norm() <= 2e-6 * wanted.norm()
    for name in off._fields:
        if getattr(off, name) is not None:
            torch.testing.assert_close(getattr(on, name), getattr(off, name), atol=1e-5, rtol=1e-5)
    return on


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_scores_and_learns_the_same_in_chunks(name, caplog):
    policy = model(name)
    caplog.clear()
    on = assert_same(policy, MASKS["answers"], temperature=0.7, entropy=True, correct=True, with_states=True)
    logits = policy(IDS, attention_mask=REAL.long(), position_ids=REAL.long().cumsum(1) - REAL.long()).logits
    expected = (logits / 0.7).log_softmax(-1)[:, :-1].gather(-1, IDS[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(on.logprobs, expected[MASKS["answers"][:, 1:]], atol=1e-5, rtol=1e-5)
    assert not caplog.records  # the compact way was taken


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("summed", [False, True])
def test_any_mask_with_pads_on_either_side_scores_the_same(mask, summed):
    on = assert_same(model(), mask, entropy=True, entropy_grad=not summed, correct=True, summed=summed)
    assert len(on.logprobs) == mask[:, 1:].sum()


@pytest.mark.parametrize("name", ["untied", "gemma2"])
def test_frozen_lower_layers_and_the_states_for_a_value_head(name):
    policy = model(name)
    freeze_layers(policy, 1)
    hidden = lower_states(policy, 1, IDS, REAL)
    on = assert_same(policy, MASKS["answers"], hidden=hidden, freeze_below=1, with_states=True)
    whole = token_scores(policy, IDS, REAL, MASKS["answers"], with_states=True)
    torch.testing.assert_close(on.logprobs, whole.logprobs)
    torch.testing.assert_close(on.states, whole.states)


def test_autocast_gives_what_it_gives_to_all_logits():
    policy = model()
    with torch.autocast("cpu", torch.bfloat16):
        off, on = (scored(policy, chunk, MASKS["answers"]) for chunk in (None, 2))
    torch.testing.assert_close(on[0].logprobs, off[0].logprobs, atol=1e-5, rtol=1e-5)
    assert (on[1] - off[1]).norm() < 0.01 * off[1].norm()  # gradients are rounded to bfloat16 at different places


def test_no_logits_of_all_positions_are_made():
    policy = model()
    policy.head_chunk, mask = 1, REAL & (torch.arange(7) >= 1)
    token_scores(policy, IDS, REAL, mask)  # the trial of the first use
    with Largest() as largest:
        token_scores(policy, IDS, REAL, mask, entropy=True, correct=True).logprobs.sum().backward()
    assert largest.numel < IDS.numel() * 40


class Twice(LlamaForCausalLM):
    """Does something to its logits that nobody knows of."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


class Adapter(nn.Module):
    """A low-rank change of a linear layer, as adapters do it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base.weight

    def forward(self, states):
        return self.base(states) + self.up(self.down(states))


def test_unknown_outputs_take_the_plain_way_with_one_warning(caplog):
    twice = Twice(LlamaConfig(**SIZES, tie_word_embeddings=False)).eval()
    adapted = model()
    adapted.lm_head = Adapter(adapted.lm_head)
    for policy in (twice, adapted):
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert_same(policy, MASKS["answers"])
        assert len(caplog.records) == 1 and "model.head_chunk=null" in caplog.text
        caplog.clear()
    with pytest.raises(ConfigError, match="Twice gives other results in two parts"):
        freeze_layers(twice, 1)


def test_adapters_elsewhere_take_the_compact_way(caplog):
    policy = model()
    for layer in policy.model.layers:
        layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj)
    assert_same(policy, MASKS["answers"], entropy=True, entropy_grad=True)
    assert not caplog.records


def test_nothing_is_left_behind_even_by_an_error():
    policy = model()
    with pytest.raises(IndexError):
        token_scores(policy, IDS, REAL, torch.ones(3, 9).bool())
    with pytest.raises(RuntimeError):
        token_scores(policy, IDS, REAL.new_ones(5, 7), MASKS["answers"])
    assert "forward" not in vars(policy.lm_head) and not policy._forward_hooks
    assert policy(IDS).logits.shape == (3, 7, 40)


def test_the_recipe_sets_the_chunk(tmp_path):
    tiny.policy().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert [Pretrained(str(tmp_path), head_chunk=n).causal_lm().head_chunk for n in (7, None)] == [7, None]
    with pytest.raises(ConfigError, match="head_chunk=-1"):
        Pretrained("x", head_chunk=-1)
