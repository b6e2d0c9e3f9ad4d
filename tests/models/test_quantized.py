"""4-bit weights below adapters."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import Pretrained
from rlhf_lightning.models.quantized import Linear4bit, quantize, quantized_layers
from rlhf_lightning.rollout.server.weights import write_weights
from rlhf_lightning.scoring import RewardModelScorer
from tests.support import phases, tiny

IDS = torch.arange(12)[None]
pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy and a reward model, and the files of all phases."""
    folder = phases.write(tmp_path_factory.mktemp("four_bits"))
    for name, model in {"policy": tiny.policy(scale=0.3), "reward_model": phases.reward_model().model}.items():
        model.save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    return folder


def recipe(folder, **more):
    return Pretrained(str(folder / "policy"), lora={"r": 4}, load_in_4bit=True, **more)


def made_whole(model):
    """The same model with what its 4-bit weights stand for in floating point."""
    for name, layer in quantized_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight.data, plain.bias = layer.whole(torch.float32), layer.bias
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain.requires_grad_(False))
    return model


def with_adapters(folder):
    torch.manual_seed(0)
    source = recipe(folder)
    model = source.adapted(source.causal_lm())
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.1, generator=generator)
    return model


def test_weights_take_four_and_a_half_bits_and_are_near_what_they_were(folder):
    layer = nn.Linear(256, 128)
    packed = Linear4bit(layer)
    kept = packed.weight.nbytes + packed.absmax.nbytes
    assert kept * 8 / layer.weight.numel() == 4.5 and packed.bias is layer.bias
    blocks = layer.weight.detach().reshape(-1, 64)
    gap = (packed.whole(torch.float32).reshape(-1, 64) - blocks).abs()
    assert (gap <= 0.16 * blocks.abs().amax(1, keepdim=True)).all()  # half of the widest step between the 16 numbers
    assert gap.mean() > 0
    numbers = packed.whole(torch.float32)
    assert torch.equal(packed.bfloat16().whole(torch.float32), numbers) and packed.bias.dtype == torch.bfloat16


def test_logits_and_gradients_are_those_of_the_weights_that_the_four_bits_stand_for(folder):
    packed, plain = with_adapters(folder), made_whole(with_adapters(folder))
    assert len(quantized_layers(packed)) == 2 * 7 and not quantized_layers(plain)
    for model in (packed, plain):
        model(IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(packed(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-6)
    learned = {name: weight.grad for name, weight in packed.named_parameters() if weight.grad is not None}
    assert learned and all("lora_" in name for name in learned)
    others = dict(plain.named_parameters())
    for name, gradient in learned.items():
        torch.testing.assert_close(gradient, others[name].grad, rtol=1e-5, atol=1e-6)


def test_the_backward_keeps_no_whole_weights(folder):
    kept = []
    layer = Linear4bit(nn.Linear(64, 64, bias=False))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        layer(torch.ones(2, 64, requires_grad=True))
    assert not kept


def test_ppo_with_four_roles_on_one_base_goes_on_from_a_checkpoint_and_exports_plain_weights(folder, tmp_path):
    def fit(*callbacks, **options):
        module = phases.ppo_module(policy=recipe(folder))
        module.scorer = RewardModelScorer(Pretrained(str(folder / "reward_model"), load_in_4bit=True))
        io = DurableCheckpointIO()
        phases.ppo(folder, module, rollouts=2, batch=4, callbacks=callbacks, plugins=[io], **options)
        return module

    module = fit(DurableCheckpoint(tmp_path / "kept", every_n_steps=1), checkpointing=True)
    again = fit(resume=checkpoints(tmp_path / "kept")[0])
    assert torch.equal(phases.flat(module.policy), phases.flat(again.policy))
    assert torch.equal(phases.flat(module.critic), phases.flat(again.critic))
    places = [{layer.weight.data_ptr() for layer in quantized_layers(model).values()}
              for model in (module.policy, module.critic.model, module.frozen["reference"])]  # fmt: skip
    assert len(places[0]) == 2 * 7 and places[0] == places[1] == places[2]
    module.export(tmp_path / "out", {"stage": "ppo"})
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    module.policy.eval()
    torch.testing.assert_close(plain(IDS).logits, module.policy(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_reward_model_of_four_bits_scores_as_its_weights_say(folder):
    scorer = RewardModelScorer(Pretrained(str(folder / "reward_model"), load_in_4bit=True))
    whole = AutoModelForSequenceClassification.from_pretrained(folder / "reward_model", num_labels=1)
    quantize(whole)
    texts = ["the food was"], [" very good ."], [{}]
    found = scorer.score_texts(*texts)
    scorer.model.model = made_whole(whole)
    assert found == pytest.approx(scorer.score_texts(*texts), abs=1e-5)
    assert found != RewardModelScorer(Pretrained(str(folder / "reward_model"))).score_texts(*texts)


def test_under_autocast_the_product_is_in_its_dtype():
    layer = Linear4bit(nn.Linear(64, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(1, 64)).dtype == torch.bfloat16
    assert layer(torch.ones(1, 64)).dtype == torch.float32


def test_what_cannot_work_is_said(folder):
    source = Pretrained(str(folder / "policy"), load_in_4bit=True)
    with pytest.raises(ConfigError, match=r"4-bit weights do not learn; set model\.lora"):
        source.adapted(source.causal_lm())
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel have no torch\.nn\.Linear"):
        quantize(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16)))


def test_a_layer_at_a_time_is_written_whole_for_a_server(folder, tmp_path):
    model = with_adapters(folder).eval()
    written = write_weights(model, tmp_path, 1)
    weights = {name: w for file in written.files for name, w in load_file(file["path"]).items()}
    plain = tiny.policy(seed=9).eval()
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)
