"""Sequences that share a row are scored as they would be alone."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, MistralConfig, MistralForCausalLM
from transformers.integrations import flex_attention as flex
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rlhf_lightning.functional.sequences import left_pad, right_pad
from rlhf_lightning.models import Pretrained, ScalarModel, packing, reading
from rlhf_lightning.models.excerpt import excerpt
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.packing import can_pack, find_groups, pack, packed_inputs, worthwhile_rows
from rlhf_lightning.models.trunk import freeze_layers, plain_inputs, probe_ids, states_of
from tests.support import tiny

SEQUENCES = [  # three prompts; one answer is the beginning of another, one prompt has a single answer
    [3, 4, 5, 6, 7, 8, 9, 10, 11],
    [3, 4, 5, 6, 7, 8, 12],
    [3, 4, 5, 6, 7, 8, 9, 10],
    [5, 5, 5, 5, 5, 5, 6, 7],
    [5, 5, 5, 5, 5, 5, 6, 8, 9, 9],
    [8, 3, 4],
]
GROUPS = torch.tensor([0, 0, 0, 1, 1, 2])


def model(attention="sdpa"):
    policy = tiny.policy()
    policy.config._attn_implementation = attention
    policy.pack_rows = True
    scalar = ScalarModel.from_policy(policy)
    torch.manual_seed(1)
    torch.nn.init.normal_(scalar.model.score.weight)
    return scalar


def gradients(scalar, ids, mask, groups):
    scalar.zero_grad()
    scores = scalar.score(ids, mask, groups)
    (scores * torch.arange(1.0, 7.0)).sum().backward()
    return scores.detach(), {name: p.grad.clone() for name, p in scalar.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pad", [left_pad, right_pad])
@pytest.mark.parametrize("pad_id", [0, 9])
@pytest.mark.parametrize(("groups", "rows"), [(GROUPS, 3), (GROUPS, 2), (GROUPS, 1), (None, 4), (None, 1)])
def test_scores_and_gradients_are_those_of_plain_rows(monkeypatch, attention, pad, pad_id, groups, rows):
    ids, mask = pad(SEQUENCES, pad_id)
    scalar = model(attention)
    monkeypatch.setattr(packing, "WORTHWHILE", 0.0)
    scores, plain = gradients(scalar, ids, mask, None)
    monkeypatch.setattr(packing, "WORTHWHILE", 100.0)
    monkeypatch.setattr(packing, "_plans", lambda widths, limit: [packing.balanced(widths, rows)])
    together, packed = gradients(scalar, ids, mask, groups)
    assert torch.allclose(together, scores, atol=1e-6)
    for name, gradient in plain.items():
        assert torch.allclose(packed[name], gradient, atol=1e-5 * gradient.abs().max()), name


@pytest.mark.parametrize("rows", [3, 1])
def test_frozen_layers_and_those_above_them_share_rows(monkeypatch, rows):
    policy = tiny.policy(layers=3)
    policy.pack_rows = True
    freeze_layers(policy, 1)
    critic = ScalarModel.from_policy(policy, 1)
    torch.nn.init.normal_(critic.model.score.weight)
    ids, mask = left_pad(SEQUENCES, 0)
    second = mask & mask.roll(1, 1)  # and later ones: nothing predicts the first token

    def learned(groups):
        hidden = packing.lower_states(policy, 1, ids, mask, groups)
        numbers = critic(ids, mask, hidden, groups)[mask]
        scored = token_scores(policy, ids, mask, second, hidden=hidden, freeze_below=1, groups=groups).logprobs
        loss = (numbers * torch.arange(len(numbers))).sum() + (scored * torch.arange(len(scored))).sum()
        trained = [weight for weight in (*policy.parameters(), *critic.parameters()) if weight.requires_grad]
        return [hidden[mask], numbers.detach(), scored.detach(), *torch.autograd.grad(loss, trained)]

    monkeypatch.setattr(packing, "WORTHWHILE", 0.0)
    plain = learned(None)
    monkeypatch.setattr(packing, "WORTHWHILE", 100.0)
    packed = []

    def plans(widths, limit):
        packed.append(widths)
        return [packing.balanced(widths, rows)]

    monkeypatch.setattr(packing, "_plans", plans)
    for found, expected in zip(learned(GROUPS), plain, strict=True):
        assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max())
    assert len(packed) == 3  # the lower layers, the critic's upper ones, the policy's


@pytest.mark.parametrize("rows", [[0, 1, 2], [1, 0, 1], [0, 0, 0]])
def test_every_token_finds_its_place_and_sees_what_came_before(rows):
    ids, mask = right_pad(SEQUENCES, 0)
    packed = pack(ids, mask, find_groups(ids, mask, GROUPS), torch.tensor(rows))
    widths = torch.tensor([12, 11, 3])  # of the first group: 6 in common, then 3, 1 and 2 tokens
    loads = torch.zeros(max(rows) + 1, dtype=torch.long).index_add(0, torch.tensor(rows), widths)
    assert packed.input_ids.shape == (max(rows) + 1, loads.max())
    assert torch.equal(packed.take(packed.input_ids)[mask], ids[mask])
    for n, length in enumerate(map(len, SEQUENCES)):
        own = packed.column[n, :length]
        sees = packed.attention[packed.row[n], 0][own]
        assert torch.equal(sees[:, own], torch.ones(length, length).tril().bool())
        assert torch.equal(sees.sum(1), torch.arange(1, length + 1))
        assert torch.equal(packed.positions[packed.row[n], own], torch.arange(length))


def test_each_token_of_unlike_sequences_has_a_place_of_its_own():
    ids, mask = right_pad(SEQUENCES, 0)
    packed = pack(ids, mask, find_groups(ids, mask, torch.arange(6)), torch.tensor([0, 1, 0, 1, 0, 1]))
    places = packed.row[:, None] * 1000 + packed.column
    assert len(places[mask].unique()) == mask.sum()


def shape(lengths, groups=None, prompt=0, context=10_000):
    """Rows and columns of the packed rows of sequences whose first ``prompt`` tokens are alike; None for plain rows."""
    ids = [[3] * prompt + [4 + i] * (length - prompt) for i, length in enumerate(lengths)]
    scalar = model()
    scalar.model.config.max_position_embeddings = context
    packed = worthwhile_rows(scalar.model, *right_pad(ids, 0), groups)
    return None if packed is None else tuple(packed.input_ids.shape)


def test_rows_are_packed_where_that_saves_work():
    one = torch.zeros(4, dtype=torch.long)
    assert shape([220] * 4, one, prompt=200) == (1, 280)  # a long prompt
    assert shape([202] * 4, one, prompt=2) is None  # attention over 802 columns would cost more
    assert shape([100, 30, 30, 40]) == (2, 100)
    assert shape([100] * 4) is None and shape([100]) is None


def test_no_row_is_longer_than_the_context():
    assert shape([40, 21, 20]) == (2, 41)
    assert shape([40, 21, 20], context=40) is None


class Deaf(LlamaModel):
    """Counts positions itself, whatever it is told."""

    def forward(self, input_ids, attention_mask, position_ids, **given):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **given)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_shares_in_every_dtype(dtype):
    policy = tiny.policy(layers=5).to(dtype)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    assert can_pack(policy)
    assert policy.training and policy.config.num_hidden_layers == 5 == len(policy.model.layers)
    assert all(torch.equal(weight, before[name]) for name, weight in policy.state_dict().items())
    assert policy.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_that_ignores_positions_does_not_share(dtype):
    policy = tiny.policy().to(dtype)
    policy.model.__class__ = Deaf
    assert not can_pack(policy)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_with_a_sliding_window_does_not_share(dtype):
    config = MistralConfig(vocab_size=17, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                           num_attention_heads=4, num_key_value_heads=2, sliding_window=4)  # fmt: skip
    assert not can_pack(MistralForCausalLM(config).to(dtype))


class Backwards(LlamaDecoderLayer):
    """Mixes the columns of a row."""

    def forward(self, hidden_states, *args, **given):
        return super().forward(hidden_states + 0.5 * hidden_states.roll(1, 1), *args, **given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_with_one_odd_layer_far_up_does_not_share(dtype):
    policy = tiny.policy(layers=5).to(dtype)
    policy.model.layers[3].__class__ = Backwards
    assert not can_pack(policy)


def test_a_large_model_is_tried_by_a_few_layers_and_tokens_of_it():
    config = LlamaConfig(vocab_size=500, hidden_size=32, intermediate_size=48, num_hidden_layers=6,
                         num_attention_heads=4, pad_token_id=499)  # fmt: skip
    policy = LlamaForCausalLM(config).bfloat16()
    small = excerpt(policy)
    assert small.dtype == torch.float32 and not small.training
    assert len(small.model.layers) == small.config.num_hidden_layers == 2
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in policy.parameters()) / 3
    ids = probe_ids(policy)
    policy.model.layers = policy.model.layers[:2]
    expected = policy.float().eval()(input_ids=ids, use_cache=False).logits
    found = small(input_ids=ids, use_cache=False).logits
    assert torch.equal(found, expected[..., : found.shape[-1]])


def test_a_family_that_cannot_share_a_row_is_named_once(tmp_path, caplog, monkeypatch):
    tiny.tokenizer().save_pretrained(tmp_path)
    config = MistralConfig(vocab_size=17, hidden_size=32, intermediate_size=48, num_hidden_layers=1, eos_token_id=1,
                           num_attention_heads=4, num_key_value_heads=2, sliding_window=4, pad_token_id=0,
                           bos_token_id=None)  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    monkeypatch.setattr(reading, "_told", set())
    assert not Pretrained(str(tmp_path), pack_rows=False).causal_lm().pack_rows
    assert "share" not in caplog.text
    for _ in range(2):
        assert not Pretrained(str(tmp_path)).causal_lm().pack_rows
    assert [r.message for r in caplog.records if "share" in r.message] == [
        "sequences of mistral models cannot share a row: each gets a row of its own"
    ]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("seed", range(3))
def test_flex_attention_sees_the_same_blocks(monkeypatch, seed):
    """Forward only: there is no backward on a CPU. Uncompiled, while on a GPU it is compiled."""
    monkeypatch.setattr(flex, "WrappedFlexAttention", lambda training: lambda: flex_attention)
    policy = tiny.policy(positions=1024)
    torch.manual_seed(seed)
    ids, mask = torch.randint(2, 13, (6, 90)), torch.arange(90) >= torch.randint(0, 80, (6, 1))
    ids[1:3, 10:50], mask[:3] = ids[0, 10:50], torch.arange(90) >= 10
    found = find_groups(ids, mask, torch.tensor([0, 0, 0, 1, 2, 3]))
    assert found.prefix[0] >= 40
    packed = pack(ids, mask, found, torch.tensor([0, 1, 1, 0]))
    plain = states_of(policy, plain_inputs(ids, mask))
    policy.config._attn_implementation = "flex_attention"
    states = packed.take(states_of(policy, packed_inputs(policy, packed)))
    torch.testing.assert_close(states[mask], plain[mask], atol=1e-5, rtol=1e-5)
    assert can_pack(policy) and policy.config._attn_implementation == "flex_attention"
