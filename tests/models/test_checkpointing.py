"""Activations that are computed again: the same gradients, fewer bytes kept."""

import pytest
import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.sequences import right_pad
from rlhf_lightning.models import Pretrained, ScalarModel, ValueHead, trunk
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.packing import lower_states
from tests.support import tiny

LAYERS = 6
IDS, REAL = right_pad([[3, 4, 5, 6, 7, 8, 9], [3, 4, 5, 6, 10], [11, 12, 13, 4, 5, 6, 7, 8]], 0)
ANSWERS = REAL & (torch.arange(8) > 2)
GROUPS = torch.tensor([0, 0, 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.policy(layers=LAYERS).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def trained(folder, every, **options):
    """A policy as a module loads it."""
    torch.manual_seed(0)
    recipe = Pretrained(folder, activation_checkpointing=every, **options)
    return recipe.adapted(recipe.causal_lm())


def gradients(policy, freeze_below=0, head=None):
    """Of the log-probabilities of the answers, and of the values of a head on the same states."""
    torch.manual_seed(1)
    hidden = lower_states(policy, freeze_below, IDS, REAL) if freeze_below else None
    scores = token_scores(
        policy, IDS, REAL, ANSWERS,
        groups=GROUPS, hidden=hidden, freeze_below=freeze_below, with_states=head is not None,
    )  # fmt: skip
    loss = (scores.logprobs * torch.linspace(-1, 1, len(scores.logprobs))).sum()
    (loss if head is None else loss + head(scores.states).square().sum()).backward()
    learned = [policy] if head is None else [policy, head]
    return torch.cat([p.grad.flatten() for part in learned for p in part.parameters() if p.grad is not None])


@pytest.mark.parametrize("every", [True, 2, 4])
@pytest.mark.parametrize(
    "options", [{}, {"pack_rows": False}, {"freeze_below": 3}, {"lora": {"r": 2, "lora_dropout": 0.5}}], ids=str
)  # fmt: skip
def test_the_gradients_are_the_same(folder, every, options):
    if "lora" in options:
        pytest.importorskip("peft")
    depth = options.get("freeze_below", 0)
    expected = gradients(trained(folder, False, **options), depth)
    found = gradients(trained(folder, every, **options), depth)
    assert expected.norm() > 1e-3
    assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_a_value_head_on_the_policy_gets_the_same_gradients(folder):
    found = []
    for every in (False, 1):
        torch.manual_seed(2)
        head = ValueHead(32)
        torch.nn.init.normal_(head.value.weight)
        found.append(gradients(trained(folder, every), head=head))
    assert (found[1] - found[0]).norm() <= 1e-6 * found[0].norm()


def kept(policy):
    """Bytes that the forward pass keeps for the backward pass besides weights; the inputs of layers that are computed
    again, which no hook sees, are counted by hand."""
    weights = {p.data_ptr() for p in policy.parameters()}
    found = {}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(3, 17, (4, 40))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = policy(
            input_ids=ids, use_cache=False
        ).logits  # keeps what was saved alive, so that no address comes twice
    again = sum(layer.gradient_checkpointing for layer in policy.model.layers)
    assert out.requires_grad
    return sum(found.values()) + again * 4 * 40 * 32 * 4


def test_fewer_bytes_are_kept_the_more_layers_are_computed_again(folder):
    whole, third, half, every = (kept(trained(folder, n)) for n in (False, 3, 2, True))
    assert every < half < third < whole
    layer = (whole - every) / LAYERS
    assert every < 0.3 * whole
    assert whole - half == pytest.approx(3 * layer, rel=0.02) and whole - third == pytest.approx(2 * layer, rel=0.02)


@pytest.mark.parametrize(
    ("every", "layers"), [(False, []), (True, [0, 1, 2, 3, 4, 5]), (1, [0, 1, 2, 3, 4, 5]), (4, [0, 4])]
)
def test_a_critic_from_the_policy_does_as_the_policy(folder, every, layers):
    policy = trained(folder, every)
    critic = ScalarModel.from_policy(policy).model
    for model in (policy, critic):
        assert [n for n, layer in enumerate(model.model.layers) if layer.gradient_checkpointing] == layers


def test_what_cannot_be_is_refused(folder, monkeypatch):
    with pytest.raises(ConfigError, match=r"model.activation_checkpointing=7: the model has 6 layers; choose 1 to 6"):
        trained(folder, 7)
    with pytest.raises(ConfigError, match=r"model.activation_checkpointing"):
        Pretrained(folder, activation_checkpointing=-1)
    monkeypatch.setattr(trunk, "GradientCheckpointingLayer", torch.nn.Bilinear)
    with pytest.raises(ConfigError, match=r"=2: transformers can do it for all layers of llama models only"):
        trained(folder, 2)
