"""Model families that stand for all: tiny random ones give the numbers of plain transformers, or a refusal."""

import pytest
import torch

from benchmarks.families import try_cell
from benchmarks.families_tiny import write_tiny
from benchmarks.families_world import World
from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.models import Pretrained

FINE = {  # family: what is special about it here
    "llama": "packed gradient checkpointing loop hf reward critic freeze lora export",
    "apertus": "packed critic",
    "bamba": "loop",
    "bloom": "packed hf",
    "cohere2": "scores freeze",
    "deepseek_v3": "packed lora",
    "falcon_mamba": "loop",
    "falcon_h1": "reward",
    "gemma2": "packed freeze",
    "gemma3": "packed loop reward",
    "gemma3/dropout": "packed",
    "gemma4": "packed reward",
    "glm4_moe": "critic lora",
    "gpt2": "packed loop reward",
    "gpt_neo": "packed",
    "gpt_oss": "packed freeze",
    "gpt_neox": "reward",
    "granite": "packed reward",
    "granitemoehybrid": "loop critic",
    "lfm2": "loop reward",
    "llama4_text": "lora critic",
    "mamba": "loop reward",
    "mistral": "packed loop",
    "mixtral": "packed lora",
    "nemotron_h": "loop",
    "olmo3": "freeze",
    "opt/layerdrop": "packed",
    "phi3": "packed loop",
    "qwen2_5_vl": "packed loop",
    "qwen3_5": "packed loop freeze",
    "qwen3_moe": "packed loop",
    "qwen3_next": "loop lora",
    "zamba2": "loop",
}
REFUSED = {  # family, and what the message must hold
    "bart": "bart",
    "bert": "sees the tokens behind it, so that it cannot write; .*is_decoder: false",
    "deepseek_v32": "a token of this deepseek_v32 model sees the tokens behind it",
    "phimoe": "config.json: router_jitter_noise=0.01: experts are drawn at random in training",
    "recurrent_gemma": "in a batch, padded, a row of this recurrent_gemma model gets other numbers than alone",
    "roberta/decoder": "in a batch, padded, a row of this roberta model gets other numbers than alone",
    "rwkv": "in a batch, padded, a row of this rwkv model gets other numbers than alone",
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("kind", FINE)
def test_a_family_gives_the_numbers_of_plain_transformers(kind, tmp_path):
    write_tiny(kind, tmp_path / "model")
    world = World(kind, tmp_path)
    assert {name: cell for name in FINE[kind].split() if (cell := try_cell(world, name)).state != "ok"} == {}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_that_cannot_be_trained_in_batches_is_refused_when_it_loads(kind, tmp_path):
    write_tiny(kind, tmp_path / "model")
    with pytest.raises(CheckpointError, match=REFUSED[kind]):
        Pretrained(str(tmp_path / "model")).causal_lm()
    assert torch.is_grad_enabled()
