"""Answers that share the row of their prompt are scored as they would be alone."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from rlhf_lightning.functional.sequences import left_pad, right_pad
from rlhf_lightning.models import ScalarModel, prefix
from rlhf_lightning.models.prefix import can_share, is_worthwhile, share_prefixes
from tests import tiny

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
    policy.share_prefix = True
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
@pytest.mark.parametrize("pad_id", [0, 1, 9])
def test_scores_and_gradients_are_those_of_plain_rows(monkeypatch, attention, pad, pad_id):
    monkeypatch.setattr(prefix, "is_worthwhile", lambda *sizes: True)
    ids, mask = pad(SEQUENCES, pad_id)
    scalar = model(attention)
    scores, plain = gradients(scalar, ids, mask, None)
    together, shared = gradients(scalar, ids, mask, GROUPS)
    assert torch.allclose(together, scores, atol=1e-6)
    for name, gradient in plain.items():
        assert torch.allclose(shared[name], gradient, atol=1e-5 * gradient.abs().max()), name


def test_every_token_finds_its_place_and_sees_what_came_before():
    ids, mask = right_pad(SEQUENCES, 0)
    shared = share_prefixes(ids, mask, GROUPS)
    assert shared.input_ids.shape == (3, 12)  # of the first group: 6 in common, then 3, 1 and 2 tokens
    assert torch.equal(shared.input_ids[shared.row[:, None], shared.column][mask], ids[mask])
    for n, length in enumerate(map(len, SEQUENCES)):
        own = shared.column[n, :length]
        sees = shared.attention[shared.row[n], 0][own]
        assert torch.equal(sees[:, own], torch.ones(length, length).tril().bool())
        assert torch.equal(sees.sum(1), torch.arange(1, length + 1))
        assert torch.equal(shared.positions[shared.row[n], own], torch.arange(length))


def test_sharing_is_for_long_prompts_only():
    def worthwhile(prompt, answer):
        ids = torch.cat([torch.full((4, prompt), 3), torch.arange(4 * answer).view(4, answer) + 4], 1)
        mask = torch.ones_like(ids, dtype=torch.bool)
        return is_worthwhile(share_prefixes(ids, mask, torch.zeros(4, dtype=torch.long)), 64)

    assert worthwhile(200, 20) and not worthwhile(2, 200)


def test_a_model_with_a_sliding_window_does_not_share():
    config = MistralConfig(vocab_size=17, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                           num_attention_heads=4, num_key_value_heads=2, sliding_window=4)  # fmt: skip
    assert can_share(tiny.policy())
    assert not can_share(MistralForCausalLM(config))


def test_a_model_that_ignores_positions_does_not_share(monkeypatch):
    policy = tiny.policy()
    forward = policy.model.forward
    policy.model.forward = lambda position_ids=None, **given: forward(**given)
    assert not can_share(policy)
